/* Wrong use: each call must return its error, and none crash. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

static TBUSADDR src, dst;
static const char *peeked;
static size_t len;
static char data[64];

static void set(TBUSADDR from, TBUSADDR to)
{
    src = from, dst = to, len = sizeof data;
}

/* Every call that takes a handle. */
static void all_are(unsigned code, int handle)
{
    TBUSFLUX flux;
    TBUSADDR way[8];
    size_t count = 8;
    set(1, 2);
    EXPECT(code, tbus_bind(handle, 0x101));
    EXPECT(code, tbus_refresh_handle(handle));
    EXPECT(code, tbus_send(handle, &src, &dst, "x", 1, 0));
    EXPECT(code, tbus_sendv(handle, &src, &dst, NULL, 0, 0));
    EXPECT(code, tbus_forward(handle, &src, &dst, "x", 1, 0));
    EXPECT(code, tbus_backward(handle, &src, &dst, "x", 1, 0));
    EXPECT(code, tbus_recv(handle, &src, &dst, data, &len, 0));
    EXPECT(code, tbus_peek_msg(handle, &src, &dst, &peeked, &len, 0));
    EXPECT(code, tbus_delete_msg(handle, &src, &dst, 0));
    EXPECT(code, tbus_get_hops(handle, way, &count));
    EXPECT(code, tbus_get_event_fd(handle));
    EXPECT(code, tbus_get_channel_flux(handle, 1, 2, &flux));
    EXPECT(code, tbus_get_channel_sendside_used_proportion(handle, 1, 2));
    EXPECT(code, tbus_get_channel_recvside_used_proportion(handle, 1, 2));
}

static const int strange[] = {0, -1, -2, 1, 4095, 4096, 4097, INT_MAX, INT_MIN, 0x7ffff000, 123456789};
enum { STRANGE = sizeof strange / sizeof *strange };

static void before_init(void)
{
    int handle = 77;
    for (int i = 0; i < STRANGE; i++)
        all_are(TBUS_ERR_NOT_INITIALIZED, strange[i]);
    EXPECT(TBUS_ERR_NOT_INITIALIZED, tbus_new(&handle));
    CHECK(handle == 77);
    EXPECT(TBUS_ERR_NOT_INITIALIZED, tbus_addr_aton("0.0.1.1", &src));
    CHECK(strcmp(tbus_addr_ntoa(0x01020304), "1.2.3.4") == 0);
    tbus_delete(&handle);
    tbus_delete(NULL);
    tbus_fini();
    tbus_fini();
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_init_ex(NULL, 0));
    EXPECT(TBUS_ERR_BAD_KEY, tbus_init_ex("", 0));
    EXPECT(TBUS_ERR_BAD_KEY, tbus_init_ex("one", 0));
    EXPECT(TBUS_ERR_BAD_KEY, tbus_init_ex("4294967296", 0));
    EXPECT(TBUS_ERR_BAD_KEY, tbus_init_ex("\xff\xfe", 0));
    EXPECT(TBUS_ERR_NO_BUS, tbus_init_ex("999", 0));
    CHECK(strstr(tbus_last_error(), "tbus.999") != NULL);
}

static void nulls_and_lengths(void)
{
    int one = bound("0.0.1.1"), two = bound("0.0.2.1");
    TBUSADDR a = address("0.0.1.1"), b = address("0.0.2.1");
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_new(NULL));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_addr_aton(NULL, &src));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_addr_aton("0.0.1.1", NULL));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_bind_by_str(one, NULL));
    const char *wrong[] = {"", "1", "0.0.1.256", "0.0.1.-1", " 0.0.1.1", "0.0.1.1.1", "a.b.c.d", "\xff"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        EXPECT(TBUS_ERR_BAD_ADDRESS, tbus_addr_aton(wrong[i], &src));
        EXPECT(TBUS_ERR_BAD_ADDRESS, tbus_bind_by_str(one, wrong[i]));
    }
    EXPECT(TBUS_ERR_NO_CHANNEL, tbus_bind(one, 0x7777));
    EXPECT(TBUS_ERR_NO_CHANNEL, tbus_bind(one, TBUS_ADDR_FIRST));
    EXPECT(TBUS_ERR_NO_CHANNEL, tbus_bind(one, TBUS_ADDR_ALL));
    CHECK(tbus_addr_ntop(a, NULL, 64) == NULL);
    CHECK(tbus_addr_ntop(a, data, 0) == NULL);
    CHECK(tbus_addr_ntop(a, data, 7) == NULL);
    CHECK(tbus_addr_ntop(a, data, 8) == data && strcmp(data, "0.0.1.1") == 0);
    CHECK(strcmp(tbus_addr_ntoa(UINT32_MAX), "255.255.255.255") == 0);

    set(a, b);
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_send(one, NULL, &dst, "x", 1, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_send(one, &src, NULL, "x", 1, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_send(one, &src, &dst, NULL, 1, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_sendv(one, &src, &dst, NULL, 1, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_sendv(one, &src, &dst, NULL, -1, 0));
    struct iovec parts[2] = {{NULL, 1}, {"x", 1}};
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_sendv(one, &src, &dst, parts, 2, 0));
    static const size_t lengths[] = {1ul << 31, UINT32_MAX, 1ul << 32, SIZE_MAX / 2, SIZE_MAX, 40000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        EXPECT(TBUS_ERR_MSG_TOO_LONG, tbus_send(one, &src, &dst, "x", lengths[i], 0));
        struct iovec longs[2] = {{"x", lengths[i]}, {"x", lengths[i]}};
        EXPECT(TBUS_ERR_MSG_TOO_LONG, tbus_sendv(one, &src, &dst, longs, 2, 0));
        src = dst = TBUS_ADDR_ALL;
        EXPECT(TBUS_ERR_MSG_TOO_LONG, tbus_send(one, &src, &dst, "x", lengths[i], 0));
        set(a, b);
    }
    EXPECT(TBUS_ERR_NO_CHANNEL, send_text(one, a, a, "x"));
    EXPECT(TBUS_ERR_NO_CHANNEL, send_text(one, b, a, "x"));

    OK(tbus_send(one, &src, &dst, NULL, 0, 0));
    OK(tbus_send(one, &src, &dst, "12345", 5, -1));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_recv(two, NULL, &dst, data, &len, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_recv(two, &src, NULL, data, &len, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_recv(two, &src, &dst, data, NULL, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_peek_msg(two, NULL, &dst, &peeked, &len, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_peek_msg(two, &src, NULL, &peeked, &len, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_peek_msg(two, &src, &dst, NULL, &len, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_peek_msg(two, &src, &dst, &peeked, NULL, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_delete_msg(two, NULL, &dst, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_delete_msg(two, &src, NULL, 0));
    len = 0;
    OK(tbus_recv(two, &src, &dst, NULL, &len, 0));
    CHECK(len == 0);
    EXPECT(TBUS_ERR_BUFFER_TOO_SHORT, tbus_recv(two, &src, &dst, NULL, &len, 0));
    CHECK(len == 5);
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_recv(two, &src, &dst, NULL, &len, 0));
    len = 4;
    EXPECT(TBUS_ERR_BUFFER_TOO_SHORT, tbus_recv(two, &src, &dst, data, &len, 0));
    src = dst = TBUS_ADDR_ALL, len = 4;
    EXPECT(TBUS_ERR_BUFFER_TOO_SHORT, tbus_recv(two, &src, &dst, data, &len, 0));
    CHECK(len == 5 && src == TBUS_ADDR_ALL);
    len = SIZE_MAX; /* more than there is memory for is no harm */
    OK(tbus_recv(two, &src, &dst, data, &len, 0));
    CHECK(len == 5 && src == a && dst == b && memcmp(data, "12345", 5) == 0);

    size_t count = 8;
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_get_hops(two, NULL, &count));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_get_hops(two, &src, NULL));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_forward(two, NULL, &dst, "x", 1, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_backward(two, &src, NULL, "x", 1, 0));
    EXPECT(TBUS_ERR_MSG_TOO_LONG, tbus_backward(two, &src, &dst, "x", SIZE_MAX, 0));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_get_channel_flux(one, a, b, NULL));
    EXPECT(TBUS_ERR_BAD_ARGUMENT, tbus_get_channel_sendside_used_proportion(one, TBUS_ADDR_ALL, b));
    EXPECT(TBUS_ERR_NO_CHANNEL, tbus_get_channel_recvside_used_proportion(one, a, 0x7777));
    /* Who has an end has it alone. */
    int other = bound("0.0.1.1");
    EXPECT(TBUS_ERR_CHANNEL_BUSY, send_text(other, a, b, "x"));
    CHECK(strstr(tbus_last_error(), "producer") != NULL);
    tbus_delete(&one);
    OK(tbus_refresh_handle(other));
    OK(send_text(other, a, b, "x"));
    receive_text(two, a, "x");
}

static void handles(void)
{
    int one = bound("0.0.1.1"), stale, unbound;
    OK(tbus_init_ex("1000", 0));
    OK(tbus_init_ex("0x3E8", 0));
    EXPECT(TBUS_ERR_ALREADY_INITIALIZED, tbus_init_ex("1001", 0));
    for (int i = 0; i < STRANGE; i++)
        if (strange[i] != one)
            all_are(TBUS_ERR_BAD_HANDLE, strange[i]);
    stale = one;
    tbus_delete(&one);
    CHECK(one == -1);
    all_are(TBUS_ERR_BAD_HANDLE, stale);
    tbus_delete(&one);
    one = stale;
    tbus_delete(&one); /* twice */
    OK(tbus_new(&unbound));
    set(1, 2);
    EXPECT(TBUS_ERR_NOT_BOUND, tbus_send(unbound, &src, &dst, "x", 1, 0));
    EXPECT(TBUS_ERR_NOT_BOUND, tbus_recv(unbound, &src, &dst, data, &len, 0));
    src = dst = TBUS_ADDR_ALL;
    EXPECT(TBUS_ERR_NOT_BOUND, tbus_send(unbound, &src, &dst, "x", 1, 0));
    EXPECT(TBUS_ERR_NOT_BOUND, tbus_recv(unbound, &src, &dst, data, &len, 0));
    EXPECT(TBUS_ERR_NOT_BOUND, tbus_get_event_fd(unbound));
    /* All that there are, and one more. */
    static int many[4094];
    for (int i = 0; i < 4094; i++) {
        OK(tbus_new(&many[i]));
        CHECK(many[i] > 0 && many[i] != stale);
    }
    int more = 5;
    EXPECT(TBUS_ERR_TOO_MANY_HANDLES, tbus_new(&more));
    CHECK(more == 5);
    tbus_delete(&many[17]);
    OK(tbus_new(&more));
    all_are(TBUS_ERR_BAD_HANDLE, stale);
    /* The end, with all of them open and one in use. */
    OK(tbus_bind_by_str(more, "0.0.1.1"));
    CHECK(tbus_get_event_fd(more) >= 0);
    tbus_fini();
    all_are(TBUS_ERR_NOT_INITIALIZED, more);
    OK(tbus_init_ex("1000", 0));
    all_are(TBUS_ERR_BAD_HANDLE, more);
    one = bound("0.0.1.1");
    CHECK(tbus_get_event_fd(one) >= 0);
}

static void forked(void)
{
    int one = bound("0.0.1.1"), two = bound("0.0.2.1"), fresh, status;
    TBUSADDR a = address("0.0.1.1"), b = address("0.0.2.1"), c = address("0.0.3.1");
    int fd = tbus_get_event_fd(two);
    CHECK(fd >= 0);
    OK(send_text(one, a, b, "before"));
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    CHECK(poll(&readable, 1, 20000) == 1);
    set(a, b);
    OK(tbus_peek_msg(two, &src, &dst, &peeked, &len, 0));
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        EXPECT(TBUS_ERR_FORKED, send_text(one, a, b, "child"));
        EXPECT(TBUS_ERR_FORKED, send_text(one, a, c, "child"));
        EXPECT(TBUS_ERR_FORKED, send_text(one, TBUS_ADDR_ALL, TBUS_ADDR_ALL, "child"));
        EXPECT(TBUS_ERR_FORKED, receive_nothing(two, a));
        EXPECT(TBUS_ERR_FORKED, receive_nothing(two, TBUS_ADDR_ALL));
        set(a, b);
        EXPECT(TBUS_ERR_FORKED, tbus_delete_msg(two, &src, &dst, 0));
        EXPECT(TBUS_ERR_FORKED, tbus_new(&fresh));
        all_are(TBUS_ERR_FORKED, one);
        all_are(TBUS_ERR_FORKED, two);
        CHECK(peeked[0] == 0); /* no crash, and nothing of the parent's */
        if (a & 1)
            tbus_fini(); /* tbus_init_ex alone does as well, see below */
        CHECK(fcntl(fd, F_GETFD) == -1 && errno == EBADF); /* nothing is left of the parent's */
        OK(tbus_init_ex("1000", 0));
        all_are(TBUS_ERR_BAD_HANDLE, two);
        int three = bound("0.0.3.1");
        OK(send_text(three, c, a, "from the child"));
        exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(poll(&readable, 1, 0) == 1); /* the parent's descriptor is as it was */
    receive_text(one, c, "from the child");
    receive_text(two, a, "before");
    child = fork();
    if (child == 0) {
        OK(tbus_init_ex("1000", 0));
        int three = bound("0.0.3.1");
        OK(send_text(three, c, a, "again"));
        exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    receive_text(one, c, "again");
    OK(send_text(one, a, b, "after"));
    receive_text(two, a, "after");
}

int main(void)
{
    before_init();
    OK(tbus_init_ex("1000", 0));
    nulls_and_lengths();
    tbus_fini();
    OK(tbus_init_ex("1000", 0));
    handles();
    tbus_fini();
    OK(tbus_init_ex("1000", 0));
    forked();
    for (unsigned code = 0x81010400u; code < 0x83010500u; code += code % 0x100 == 0xff ? 0xffff01 : 1)
        CHECK(tbus_error_string((int)code) != NULL && tbus_error_string((int)code)[0] != 0);
    puts("done");
    return 0; /* without tbus_fini */
}
