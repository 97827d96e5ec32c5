/* What the checking programs have in common. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tbus/tbus.h>

#define CHECK(what)                                                          \
    do {                                                                     \
        if (!(what)) {                                                       \
            fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #what, tbus_last_error()); \
            exit(1);                                                         \
        }                                                                    \
    } while (0)

/* The call must return this code. */
#define EXPECT(code, call)                                                   \
    do {                                                                     \
        int ret_ = (call);                                                   \
        if ((unsigned)ret_ != (unsigned)(code)) {                            \
            fprintf(stderr, "%s:%d: %s is %#x (%s; %s), not " #code "\n", __FILE__, __LINE__, #call, \
                    (unsigned)ret_, tbus_error_string(ret_), tbus_last_error()); \
            exit(1);                                                         \
        }                                                                    \
    } while (0)

#define OK(call) EXPECT(TBUS_SUCCESS, call)

static inline TBUSADDR address(const char *text)
{
    TBUSADDR addr = 0;
    OK(tbus_addr_aton(text, &addr));
    return addr;
}

static inline int bound(const char *text)
{
    int handle = 0;
    OK(tbus_new(&handle));
    CHECK(handle > 0);
    OK(tbus_bind_by_str(handle, text));
    return handle;
}

static inline int send_text(int handle, TBUSADDR src, TBUSADDR dst, const char *text)
{
    return tbus_send(handle, &src, &dst, text, strlen(text), 0);
}

/* Receives what must be `text`, from `src`; returns who sent it. */
static inline TBUSADDR receive_text(int handle, TBUSADDR src, const char *text)
{
    char data[256];
    size_t len = sizeof data;
    TBUSADDR dst = TBUS_ADDR_FIRST;
    OK(tbus_recv(handle, &src, &dst, data, &len, 0));
    if (len != strlen(text) || memcmp(data, text, len) != 0) {
        fprintf(stderr, "received '%.*s', not '%s'\n", (int)len, data, text);
        exit(1);
    }
    return src;
}

static inline int receive_nothing(int handle, TBUSADDR src)
{
    char data[256];
    size_t len = sizeof data;
    TBUSADDR dst = TBUS_ADDR_FIRST;
    return tbus_recv(handle, &src, &dst, data, &len, 0);
}

#endif
