/*
 * tbus: message channels between processes, in shared memory, that stretch across hosts.
 *
 * Order of use: tbus_init_ex, tbus_new, tbus_addr_aton, tbus_bind; then tbus_send and tbus_recv; tbus_delete, tbus_fini.
 * No call waits for a message, for room or for an end that somebody has: see tbus_get_event_fd, and tbus_refresh_handle.
 *
 * Results. TBUS_SUCCESS, or an error: a negative int, the bits of one of the TBUS_ERR_ codes. Compare as
 * (unsigned)ret == TBUS_ERR_CHANNEL_EMPTY. A wrong call gets an error, never a crash, as long as its pointers are null or
 * valid.
 *
 * Addresses. src is who sends a message, dst who receives it. In sending and receiving calls both point to an address or to
 *   TBUS_ADDR_FIRST (0)   the first channel that matches, in the order of binding and of the map; in receiving calls the
 *                         first one that has a message
 *   TBUS_ADDR_ALL (-1)    sending: every channel that matches; receiving: any of them, in turn, 10 messages a turn
 * After a receiving call that succeeded they are the message's addresses, after a sending call to one channel that
 * channel's; after an error, and after sending to all, they are as before. Set them anew before the next call.
 *
 * flag is 0; nothing has a meaning yet, and any value is accepted.
 *
 * Threads. A handle has a sending half (tbus_send, tbus_sendv, tbus_get_channel_*) and a receiving half (tbus_recv,
 * tbus_peek_msg, tbus_delete_msg, tbus_get_hops, tbus_get_event_fd). One thread at a time may be in calls of each; they need not be the same
 * thread, nor always the same ones. tbus_bind, tbus_bind_by_str, tbus_refresh_handle, tbus_forward, tbus_backward and tbus_delete use the whole
 * handle. Different handles are independent. During tbus_init_ex and tbus_fini no other thread is in a call. Calls without
 * a handle, tbus_new among them, are free for all threads.
 *
 * Forks. Handles stay with the parent: in the child their calls return TBUS_ERR_FORKED. The child calls tbus_fini and
 * tbus_init_ex, and then has the channels that the parent does not have.
 *
 * Kills. A message for which tbus_send returned TBUS_SUCCESS is in shared memory and survives this process. A process that
 * is killed between tbus_peek_msg and tbus_delete_msg sees that message again.
 */
#ifndef TBUS_TBUS_H
#define TBUS_TBUS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The name of an endpoint. How its four dotted numbers share the 32 bits is the bus's address template. */
typedef uint32_t TBUSADDR;

#define TBUS_ADDR_FIRST ((TBUSADDR)0)
#define TBUS_ADDR_ALL ((TBUSADDR)0xffffffffu)

#define TBUS_SUCCESS 0

/* Nothing is wrong: try later. */
#define TBUS_ERR_CHANNEL_EMPTY 0x81010401u     /* no message is there now */
#define TBUS_ERR_CHANNEL_FULL 0x81010402u      /* the receiver has not read enough yet; nothing was sent */
#define TBUS_ERR_BUFFER_TOO_SHORT 0x81010403u  /* the message stays, *len is what it needs */
#define TBUS_ERR_CHANNEL_BUSY 0x81010404u      /* another process or handle has this end of the channel */
#define TBUS_ERR_PARTLY_SENT 0x81010405u       /* to all: some have it, some do not */
/* The call is wrong. */
#define TBUS_ERR_NOT_INITIALIZED 0x82010406u   /* tbus_init_ex comes first */
#define TBUS_ERR_ALREADY_INITIALIZED 0x82010407u /* with another key; tbus_fini comes first */
#define TBUS_ERR_BAD_ARGUMENT 0x82010408u      /* a null pointer, or a number that cannot be */
#define TBUS_ERR_BAD_HANDLE 0x82010409u        /* no such handle, or no longer */
#define TBUS_ERR_TOO_MANY_HANDLES 0x8201040au  /* 4095 are in use */
#define TBUS_ERR_BAD_KEY 0x8201040bu           /* no number of 32 bits, decimal or 0x hexadecimal */
#define TBUS_ERR_BAD_ADDRESS 0x8201040cu       /* no address by the bus's template */
#define TBUS_ERR_NOT_BOUND 0x8201040du         /* tbus_bind comes first */
#define TBUS_ERR_NO_CHANNEL 0x8201040eu        /* the map has no such channel, or no longer */
#define TBUS_ERR_MSG_TOO_LONG 0x8201040fu      /* longer than half the ring */
#define TBUS_ERR_NO_MSG_PEEKED 0x82010410u     /* tbus_peek_msg comes first */
#define TBUS_ERR_NO_HOP 0x82010411u            /* no message was received yet */
#define TBUS_ERR_TOO_MANY_HOPS 0x82010412u     /* forwarded 8 times already */
#define TBUS_ERR_FORKED 0x82010413u            /* the bus is the parent's */
/* The system, or another process. */
#define TBUS_ERR_NO_BUS 0x83010414u            /* no bus of this key in TBUS_SHM_DIR or /dev/shm */
#define TBUS_ERR_NOT_PERMITTED 0x83010415u     /* this user may not use it */
#define TBUS_ERR_CHANNEL_DAMAGED 0x83010416u   /* another process wrote into it against the rules */
#define TBUS_ERR_BAD_CRC 0x83010417u           /* changed after sending; the message stays */
#define TBUS_ERR_WRONG_LAYOUT 0x83010418u      /* made by another version of tbus */
#define TBUS_ERR_SYSTEM 0x83010419u            /* a system call failed */
#define TBUS_ERR_INTERNAL 0x8301041au          /* a bug in libtbus */

/* What passed through a channel since its rings were made, as far as this host knows. Bytes include the records' headers. */
typedef struct tbus_flux {
    uint64_t send_msgs;
    uint64_t send_bytes;
    uint64_t recv_msgs;
    uint64_t recv_bytes;
} TBUSFLUX;

/* ---- Attaching, handles, addresses ---- */

/* Attaches the process to the bus `key`, a number as text, decimal or 0x hexadecimal: the directory
 * ${TBUS_SHM_DIR:-/dev/shm}/tbus.KEY, which tbusmgr makes. A second time with the same key does nothing. */
int tbus_init_ex(const char *key, int flag);

/* Ends the attachment and all handles. */
void tbus_fini(void);

/* Makes a handle. At most 4095 at a time. */
int tbus_new(int *handle);

/* Ends a handle, gives its channels back, and stores -1. */
void tbus_delete(int *handle);

/* Reads an address as the bus writes it: four decimal numbers with dots. */
int tbus_addr_aton(const char *text, TBUSADDR *addr);

/* The address as text, until this thread's next call. Without a bus as of template 8.8.8.8. */
const char *tbus_addr_ntoa(TBUSADDR addr);

/* The same into `text` of `size` bytes, 44 are always enough; NULL if they are not. */
const char *tbus_addr_ntop(TBUSADDR addr, char *text, size_t size);

/* Gives the handle an address, which is an end of at least one channel. A handle may have several. The ends of the channels
 * are taken when they are first used: each has one sender and one receiver at a time. */
int tbus_bind(int handle, const TBUSADDR addr);
int tbus_bind_by_str(int handle, const char *addr);

/* Looks at the map now, and tries anew what failed or was busy; this call alone may wait, up to about a fifth of a second,
 * for an end that somebody has. What tbus_peek_msg showed of a channel that failed is no longer valid. Without it, channels
 * that are added are found by calls for first, all, or the new address itself, and an end that was busy is tried again after a
 * tenth of a second. */
int tbus_refresh_handle(int handle);

/* ---- Sending ---- */

/* Sends `len` bytes, 0 is legal. To all: TBUS_ERR_PARTLY_SENT if some took it. */
int tbus_send(int handle, TBUSADDR *src, TBUSADDR *dst, const void *data, size_t len, int flag);

/* Sends the parts as one message. */
int tbus_sendv(int handle, TBUSADDR *src, TBUSADDR *dst, const struct iovec *iov, int iovcnt, int flag);

/* Like tbus_send, and the message carries the way back of the one that this handle received or peeked at last, with the
 * address that it is sent from added: up to 8 of them. */
int tbus_forward(int handle, TBUSADDR *src, TBUSADDR *dst, const void *data, size_t len, int flag);

/* Sends to the last address of that way back, and the message carries the rest. If the message was not forwarded, that is its
 * sender. *src and *dst are not read; they are filled in. */
int tbus_backward(int handle, TBUSADDR *src, TBUSADDR *dst, const void *data, size_t len, int flag);

/* ---- Receiving ---- */

/* Copies the next message to `data`, which has room for *len bytes; *len becomes its length. */
int tbus_recv(int handle, TBUSADDR *src, TBUSADDR *dst, void *data, size_t *len, int flag);

/* Shows the next message where it lies. It stays the next one, and *data valid, until it is deleted or received, the channel is deleted,
 * tbus_refresh_handle is called after the channel failed, or the handle ends. The sending process could still change it. */
int tbus_peek_msg(int handle, TBUSADDR *src, TBUSADDR *dst, const char **data, size_t *len, int flag);

/* Deletes the message that tbus_peek_msg showed, of the channel that it showed last if first or all is asked for. */
int tbus_delete_msg(int handle, TBUSADDR *src, TBUSADDR *dst, int flag);

/* The way back of the message received or peeked at last, the next hop last. *count: room in `hops`, 8 are always enough; it becomes
 * their number. */
int tbus_get_hops(int handle, TBUSADDR *hops, size_t *count);

/* A descriptor, or an error. It is readable while a channel of the handle may have a message: wait for it with poll or
 * epoll, then receive until TBUS_ERR_CHANNEL_EMPTY, which makes it unreadable; now and then there is nothing to receive. Do not read, write or close it. Takes the receiving
 * ends of all channels of the handle, those included that are bound or added later, which make it readable within a tenth
 * of a second; for ends that somebody else has it is readable each tenth of a second, to try again. It ends with the
 * handle. */
int tbus_get_event_fd(int handle);

/* ---- What is in a channel ---- */

/* Of the channel between `local`, an address of the handle, and `peer`; either may be TBUS_ADDR_FIRST. */
int tbus_get_channel_flux(int handle, TBUSADDR local, TBUSADDR peer, TBUSFLUX *flux);

/* How much of the outgoing, or the incoming ring unread messages take: 0 to 100 percent, or an error. */
int tbus_get_channel_sendside_used_proportion(int handle, TBUSADDR local, TBUSADDR peer);
int tbus_get_channel_recvside_used_proportion(int handle, TBUSADDR local, TBUSADDR peer);

/* ---- What went wrong ---- */

/* What a code means, and the mend. Never NULL. */
const char *tbus_error_string(int code);

/* More about this thread's last error that has more to it: which file, address or user. Until the thread's next error.
 * Never NULL. */
const char *tbus_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
