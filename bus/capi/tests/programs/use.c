/* Right use: each check is a name on the command line. Channels: 0.0.1.1 with 0.0.2.1, 0.0.3.1 and 0.0.4.1, and 0.0.2.1 with 0.0.3.1. */
#include "check.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static TBUSADDR a, b, c, d;

static void peek(void)
{
    int one = bound("0.0.1.1"), two = bound("0.0.2.1");
    OK(send_text(one, a, b, "first"));
    OK(send_text(one, a, b, "second"));
    const char *data = NULL, *again = NULL;
    size_t len = 0;
    TBUSADDR src = a, dst = b;
    EXPECT(TBUS_ERR_NO_MSG_PEEKED, tbus_delete_msg(two, &src, &dst, 0));
    OK(tbus_peek_msg(two, &src, &dst, &data, &len, 0));
    CHECK(len == 5 && memcmp(data, "first", 5) == 0);
    OK(tbus_peek_msg(two, &src, &dst, &again, &len, 0));
    CHECK(again == data);
    /* By any wildcard it is the one that was peeked at. */
    src = TBUS_ADDR_ALL, dst = TBUS_ADDR_FIRST;
    OK(tbus_delete_msg(two, &src, &dst, 0));
    CHECK(src == a && dst == b);
    EXPECT(TBUS_ERR_NO_MSG_PEEKED, tbus_delete_msg(two, &src, &dst, 0));
    src = TBUS_ADDR_ALL, dst = TBUS_ADDR_ALL;
    OK(tbus_peek_msg(two, &src, &dst, &data, &len, 0));
    CHECK(src == a && dst == b && len == 6 && memcmp(data, "second", 6) == 0);
    /* A receive ends the peek. */
    CHECK(receive_text(two, a, "second") == a);
    EXPECT(TBUS_ERR_NO_MSG_PEEKED, tbus_delete_msg(two, &src, &dst, 0));
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, tbus_peek_msg(two, &src, &dst, &data, &len, 0));
    /* Both addresses in one place: it is one of the two afterwards. */
    OK(send_text(one, a, b, "third"));
    char room[8];
    len = sizeof room, src = TBUS_ADDR_ALL;
    OK(tbus_recv(two, &src, &src, room, &len, 0));
    CHECK(len == 5 && (src == a || src == b));
}

static void iovec(void)
{
    int one = bound("0.0.1.1"), two = bound("0.0.2.1");
    struct iovec parts[4] = {{"he", 2}, {NULL, 0}, {"l", 1}, {"lo", 2}};
    TBUSADDR src = TBUS_ADDR_FIRST, dst = b;
    OK(tbus_sendv(one, &src, &dst, parts, 4, 0));
    CHECK(src == a);
    receive_text(two, a, "hello");
    OK(tbus_sendv(one, &src, &dst, NULL, 0, 0));
    receive_text(two, a, "");
}

static void broadcast(void)
{
    int one = bound("0.0.1.1"), two = bound("0.0.2.1"), three = bound("0.0.3.1"), four = bound("0.0.4.1");
    TBUSADDR src = TBUS_ADDR_FIRST, dst = TBUS_ADDR_ALL;
    OK(tbus_send(one, &src, &dst, "all", 3, 0));
    CHECK(src == TBUS_ADDR_FIRST && dst == TBUS_ADDR_ALL);
    receive_text(two, TBUS_ADDR_FIRST, "all");
    receive_text(three, a, "all");
    receive_text(four, TBUS_ADDR_ALL, "all");
    /* The first of one's channels is the first in the map. */
    dst = TBUS_ADDR_FIRST;
    OK(tbus_send(one, &src, &dst, "one", 3, 0));
    CHECK(src == a && dst == b);
    receive_text(two, a, "one");
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(three, TBUS_ADDR_ALL));
    /* One of three is full. */
    int sent = 0, ret;
    while ((ret = send_text(one, a, c, "filling it up, in somewhat longer pieces")) == TBUS_SUCCESS)
        sent++;
    EXPECT(TBUS_ERR_CHANNEL_FULL, ret);
    dst = TBUS_ADDR_ALL;
    EXPECT(TBUS_ERR_PARTLY_SENT, tbus_send(one, &src, &dst, "some of you, in somewhat longer pieces", 38, 0));
    receive_text(two, a, "some of you, in somewhat longer pieces");
    receive_text(four, a, "some of you, in somewhat longer pieces");
    while (sent-- > 0)
        receive_text(three, a, "filling it up, in somewhat longer pieces");
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(three, a));
}

static void any(void)
{
    int one = bound("0.0.1.1"), two = bound("0.0.2.1"), three = bound("0.0.3.1"), four = bound("0.0.4.1");
    for (int i = 0; i < 25; i++) {
        OK(send_text(two, b, a, "b"));
        OK(send_text(three, c, a, "c"));
    }
    OK(send_text(four, d, a, "d"));
    /* Ten a turn, and the one of 0.0.4.1 is not kept waiting. */
    char order[52] = "";
    int runs = 0;
    for (int i = 0; i < 51; i++) {
        char data[2];
        size_t len = sizeof data;
        TBUSADDR src = TBUS_ADDR_ALL, dst = TBUS_ADDR_ALL;
        OK(tbus_recv(one, &src, &dst, data, &len, 0));
        CHECK(len == 1 && dst == a && src == (data[0] == 'b' ? b : data[0] == 'c' ? c : d));
        order[i] = data[0];
        runs += i == 0 || order[i] != order[i - 1];
    }
    CHECK(strncmp(order, "bbbbbbbbbb", 10) == 0 || strncmp(order, "cccccccccc", 10) == 0 || order[0] == 'd');
    CHECK(runs == 7 || runs == 6);
    CHECK(memchr(order, 'd', 21) != NULL);
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(one, TBUS_ADDR_ALL));
    /* The first that has a message, in the order of the map. */
    OK(send_text(four, d, a, "d"));
    OK(send_text(three, c, a, "c"));
    CHECK(receive_text(one, TBUS_ADDR_FIRST, "c") == c);
    CHECK(receive_text(one, TBUS_ADDR_FIRST, "d") == d);
    /* One handle with two addresses. */
    tbus_delete(&two);
    OK(tbus_bind(one, b));
    OK(send_text(three, c, b, "to b"));
    OK(send_text(three, c, a, "to a"));
    TBUSADDR src = c, dst = TBUS_ADDR_ALL;
    char data[8];
    size_t len = sizeof data;
    OK(tbus_recv(one, &src, &dst, data, &len, 0));
    CHECK(memcmp(data, dst == a ? "to a" : "to b", 4) == 0);
    TBUSADDR before = dst;
    src = c, dst = TBUS_ADDR_ALL, len = sizeof data;
    OK(tbus_recv(one, &src, &dst, data, &len, 0));
    CHECK(before != dst && memcmp(data, dst == a ? "to a" : "to b", 4) == 0);
    src = TBUS_ADDR_FIRST, dst = c;
    OK(tbus_send(one, &src, &dst, "x", 1, 0));
    CHECK(src == a);
    receive_text(three, a, "x");
}

/* a sends to b, b forwards to c, c sends back by b to a. */
static void hops(void)
{
    int one = bound("0.0.1.1"), two = bound("0.0.2.1"), three = bound("0.0.3.1");
    TBUSADDR src = b, dst = c, way[8];
    size_t count = 8;
    EXPECT(TBUS_ERR_NO_HOP, tbus_forward(two, &src, &dst, "x", 1, 0));
    EXPECT(TBUS_ERR_NO_HOP, tbus_backward(two, &src, &dst, "x", 1, 0));
    OK(tbus_get_hops(two, way, &count));
    CHECK(count == 0);
    OK(send_text(one, a, b, "ask"));
    receive_text(two, a, "ask");
    count = 8;
    OK(tbus_get_hops(two, way, &count));
    CHECK(count == 1 && way[0] == a);
    src = TBUS_ADDR_FIRST, dst = c;
    OK(tbus_forward(two, &src, &dst, "ask on", 6, 0));
    CHECK(src == b && dst == c);
    receive_text(three, TBUS_ADDR_ALL, "ask on");
    count = 1;
    EXPECT(TBUS_ERR_BUFFER_TOO_SHORT, tbus_get_hops(three, way, &count));
    CHECK(count == 2);
    OK(tbus_get_hops(three, way, &count));
    CHECK(count == 2 && way[0] == a && way[1] == b);
    src = dst = TBUS_ADDR_FIRST;
    OK(tbus_backward(three, &src, &dst, "answer", 6, 0));
    CHECK(src == c && dst == b);
    receive_text(two, c, "answer");
    count = 8;
    OK(tbus_get_hops(two, way, &count));
    CHECK(count == 1 && way[0] == a);
    OK(tbus_backward(two, &src, &dst, "answer on", 9, 0));
    CHECK(src == b && dst == a);
    receive_text(one, b, "answer on");
    /* To and fro between two, until the record is full. */
    int handles[2] = {one, two};
    TBUSADDR ends[2] = {a, b};
    OK(send_text(one, a, b, "ball"));
    for (int i = 1; i < 8; i++) {
        receive_text(handles[i % 2], ends[1 - i % 2], "ball");
        src = ends[i % 2], dst = ends[1 - i % 2];
        OK(tbus_forward(handles[i % 2], &src, &dst, "ball", 4, 0));
    }
    receive_text(one, b, "ball");
    src = a, dst = b;
    EXPECT(TBUS_ERR_TOO_MANY_HOPS, tbus_forward(one, &src, &dst, "ball", 4, 0));
    for (int i = 0; i < 8; i++) {
        count = 8;
        OK(tbus_get_hops(handles[i % 2], way, &count));
        CHECK(count == (size_t)(8 - i));
        OK(tbus_backward(handles[i % 2], &src, &dst, "back", 4, 0));
        CHECK(src == ends[i % 2] && dst == ends[1 - i % 2]);
        receive_text(handles[1 - i % 2], src, "back");
    }
}

static void full(void)
{
    int one = bound("0.0.1.1"), two = bound("0.0.2.1");
    char data[1000] = "full";
    TBUSADDR src = a, dst = b;
    CHECK(tbus_get_channel_sendside_used_proportion(one, a, b) == 0);
    int sent = 0, ret;
    while ((ret = tbus_send(one, &src, &dst, data, sizeof data, 0)) == TBUS_SUCCESS)
        sent++;
    EXPECT(TBUS_ERR_CHANNEL_FULL, ret);
    CHECK(sent > 10);
    CHECK(tbus_get_channel_sendside_used_proportion(one, a, b) > 90);
    CHECK(tbus_get_channel_recvside_used_proportion(one, a, b) == 0);
    CHECK(tbus_get_channel_recvside_used_proportion(two, b, TBUS_ADDR_FIRST) > 90);
    TBUSFLUX flux;
    OK(tbus_get_channel_flux(one, a, b, &flux));
    CHECK(flux.send_msgs == (uint64_t)sent && flux.send_bytes >= 1000u * (unsigned)sent && flux.recv_msgs == 0);
    size_t len = 10;
    dst = b, src = a;
    EXPECT(TBUS_ERR_BUFFER_TOO_SHORT, tbus_recv(two, &src, &dst, data, &len, 0));
    CHECK(len == 1000);
    for (int i = 0; i < sent; i++) {
        len = sizeof data;
        OK(tbus_recv(two, &src, &dst, data, &len, 0));
        CHECK(len == 1000 && memcmp(data, "full", 5) == 0);
    }
    OK(tbus_get_channel_flux(two, b, a, &flux));
    CHECK(flux.recv_msgs == (uint64_t)sent && flux.recv_bytes >= 1000u * (unsigned)sent && flux.send_msgs == 0);
    OK(tbus_send(one, &src, &dst, data, sizeof data, 0));
}

static void readable(int epoll, int is, int timeout)
{
    struct epoll_event event;
    int count = epoll_wait(epoll, &event, 1, timeout);
    if (count != is) {
        fprintf(stderr, "%d descriptors are readable, not %d\n", count, is);
        exit(1);
    }
}

static int watched(int handle)
{
    int fd = tbus_get_event_fd(handle);
    CHECK(fd >= 0 && tbus_get_event_fd(handle) == fd);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data = {.fd = fd}};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
    return epoll;
}

/* A loop that sleeps until another process sends. */
static void events(void)
{
    enum { MESSAGES = 3000 };
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        tbus_fini();
        OK(tbus_init_ex("1000", 0));
        int two = bound("0.0.2.1"), three = bound("0.0.3.1");
        for (int i = 0; i < MESSAGES; i++) {
            int ret;
            do
                ret = send_text(i % 2 ? two : three, i % 2 ? b : c, a, "event");
            while ((unsigned)ret == TBUS_ERR_CHANNEL_FULL);
            OK(ret);
            if (i % 10 == 0)
                usleep(i % 7 * 100); /* so that the receiver falls asleep */
        }
        exit(0);
    }
    int one = bound("0.0.1.1"), epoll = watched(one), received = 0;
    while (received < MESSAGES) {
        readable(epoll, 1, 20000);
        int ret;
        TBUSADDR src = TBUS_ADDR_ALL, dst = TBUS_ADDR_ALL;
        char data[8];
        size_t len = sizeof data;
        /* Now and then less than all: then it stays readable. */
        for (int i = 0; i < 1 + received % 100; i++) {
            ret = tbus_recv(one, &src, &dst, data, &len, 0);
            if ((unsigned)ret == TBUS_ERR_CHANNEL_EMPTY)
                break;
            OK(ret);
            received++;
            src = dst = TBUS_ADDR_ALL, len = sizeof data;
        }
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    /* It may be told of once more what was received meanwhile, and not for ever. */
    int told = 0;
    struct epoll_event event;
    do
        EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(one, TBUS_ADDR_ALL));
    while (epoll_wait(epoll, &event, 1, 150) != 0 && ++told < 5);
    CHECK(told < 5);
    /* Ended and made anew: what came meanwhile is there at once. */
    tbus_delete(&one);
    int two = bound("0.0.2.1");
    OK(send_text(two, b, a, "before"));
    one = bound("0.0.1.1");
    epoll = watched(one);
    readable(epoll, 1, 20000);
    receive_text(one, TBUS_ADDR_ALL, "before");
}

/* What the descriptor of a handle is told of that it did not have when the descriptor was made. */
static void later(void)
{
    int two = bound("0.0.2.1"), three = bound("0.0.4.1"), epoll = watched(three);
    OK(tbus_bind(three, c));
    readable(epoll, 0, 150);
    OK(send_text(two, b, c, "bound later"));
    readable(epoll, 1, 20000);
    receive_text(three, b, "bound later");
    /* An end that another handle has until it ends. */
    int first = bound("0.0.1.1"), second = bound("0.0.1.1");
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(first, b));
    epoll = watched(second);
    EXPECT(TBUS_ERR_CHANNEL_BUSY, receive_nothing(second, b));
    OK(send_text(two, b, a, "taken later"));
    tbus_delete(&first);
    for (int i = 0;; i++) {
        readable(epoll, 1, 20000);
        char data[16];
        size_t len = sizeof data;
        TBUSADDR src = b, dst = a;
        unsigned ret = (unsigned)tbus_recv(second, &src, &dst, data, &len, 0);
        if (ret == TBUS_SUCCESS)
            break;
        CHECK(ret == TBUS_ERR_CHANNEL_BUSY && i < 100); /* it may be told to look again, not over and over */
    }
    do
        EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(second, b));
    while (epoll_wait(epoll, &(struct epoll_event){0}, 1, 0) != 0);
    readable(epoll, 0, 250);
}

/* A channel that is added while the program receives by exact address. */
static void added(void)
{
    int one = bound("0.0.1.1"), epoll = watched(one);
    puts("ready"), fflush(stdout);
    readable(epoll, 1, 20000);
    CHECK(getchar() == '\n');
    do
        EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(one, b));
    while (epoll_wait(epoll, &(struct epoll_event){0}, 1, 250) != 0);
    int nine = bound("0.0.9.1");
    TBUSADDR e = address("0.0.9.1");
    OK(send_text(nine, e, a, "from nine"));
    readable(epoll, 1, 20000);
    receive_text(one, e, "from nine");
}

/* How often the process slept so far. */
static long sleeps(void)
{
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return usage.ru_nvcsw;
}

/* Ends that others have do not make a call wait. */
static void busy(void)
{
    int one = bound("0.0.1.1"), other = bound("0.0.1.1");
    OK(send_text(one, a, TBUS_ADDR_ALL, "taken"));
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(one, TBUS_ADDR_ALL));
    long before = sleeps();
    EXPECT(TBUS_ERR_CHANNEL_BUSY, send_text(other, a, b, "x"));
    EXPECT(TBUS_ERR_CHANNEL_BUSY, send_text(other, a, TBUS_ADDR_ALL, "x"));
    EXPECT(TBUS_ERR_CHANNEL_BUSY, receive_nothing(other, b));
    EXPECT(TBUS_ERR_CHANNEL_BUSY, receive_nothing(other, TBUS_ADDR_ALL));
    CHECK(sleeps() - before < 20);
    tbus_delete(&one);
    OK(tbus_refresh_handle(other));
    OK(send_text(other, a, TBUS_ADDR_ALL, "x"));
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(other, b));
}

/* The channel from 0.0.2.1 to 0.0.1.1 is damaged: that is told, and stops no other. */
static void damaged(void)
{
    int one = bound("0.0.1.1"), three = bound("0.0.3.1"), epoll = watched(one);
    OK(send_text(three, c, a, "first"));
    readable(epoll, 1, 20000);
    EXPECT(TBUS_ERR_CHANNEL_DAMAGED, receive_nothing(one, TBUS_ADDR_FIRST));
    receive_text(one, TBUS_ADDR_FIRST, "first");
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(one, TBUS_ADDR_FIRST));
    OK(send_text(three, c, a, "second"));
    readable(epoll, 1, 20000);
    EXPECT(TBUS_ERR_CHANNEL_DAMAGED, receive_nothing(one, b));
    receive_text(one, TBUS_ADDR_ALL, "second");
    OK(tbus_refresh_handle(one));
    EXPECT(TBUS_ERR_CHANNEL_DAMAGED, receive_nothing(one, TBUS_ADDR_ALL));
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(one, TBUS_ADDR_ALL));
}

/* Told on standard input when 0.0.1.1 has a channel with 0.0.9.1, and when that is deleted. */
static void live(void)
{
    int one = bound("0.0.1.1"), epoll = watched(one);
    TBUSADDR e = address("0.0.9.1");
    EXPECT(TBUS_ERR_NO_CHANNEL, send_text(one, a, e, "x"));
    EXPECT(TBUS_ERR_NO_CHANNEL, receive_nothing(one, e));
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(one, TBUS_ADDR_ALL));
    puts("no channel yet"), fflush(stdout);
    readable(epoll, 1, 20000); /* which says: look again */
    CHECK(getchar() == '\n');
    int nine = bound("0.0.9.1");
    OK(send_text(nine, e, a, "from nine"));
    CHECK(receive_text(one, TBUS_ADDR_ALL, "from nine") == e);
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(one, TBUS_ADDR_ALL));
    OK(send_text(nine, e, a, "again"));
    readable(epoll, 1, 20000);
    CHECK(receive_text(one, e, "again") == e);
    OK(send_text(one, a, e, "to nine"));
    receive_text(nine, a, "to nine");
    OK(send_text(nine, e, a, "last"));
    puts("there is one"), fflush(stdout);
    CHECK(getchar() == '\n');
    /* Deleted: what is unread is still to be had. */
    CHECK(receive_text(one, e, "last") == e);
    EXPECT(TBUS_ERR_NO_CHANNEL, receive_nothing(one, e));
    EXPECT(TBUS_ERR_NO_CHANNEL, send_text(one, a, e, "x"));
    EXPECT(TBUS_ERR_NO_CHANNEL, send_text(nine, e, a, "x"));
    EXPECT(TBUS_ERR_CHANNEL_EMPTY, receive_nothing(one, TBUS_ADDR_ALL));
    puts("deleted"), fflush(stdout);
    CHECK(getchar() == '\n');
    /* And made anew, under handles that know the old one. */
    OK(send_text(one, a, e, "anew"));
    receive_text(nine, a, "anew");
    OK(send_text(nine, e, a, "anew"));
    readable(epoll, 1, 20000);
    receive_text(one, TBUS_ADDR_ALL, "anew");
}

enum { THREADS = 4, EACH = 20000 };

static void *send_many(void *handle)
{
    for (int i = 0; i < EACH; i++) {
        TBUSADDR src = TBUS_ADDR_FIRST, dst = TBUS_ADDR_FIRST;
        int ret;
        do
            ret = tbus_send(*(int *)handle, &src, &dst, &i, sizeof i, 0);
        while ((unsigned)ret == TBUS_ERR_CHANNEL_FULL);
        OK(ret);
    }
    return NULL;
}

static void *receive_many(void *handle)
{
    for (int i = 0; i < EACH; i++) {
        TBUSADDR src = TBUS_ADDR_FIRST, dst = TBUS_ADDR_FIRST;
        int ret, data = -1;
        size_t len = sizeof data;
        do
            ret = tbus_recv(*(int *)handle, &src, &dst, &data, &len, 0);
        while ((unsigned)ret == TBUS_ERR_CHANNEL_EMPTY);
        OK(ret);
        CHECK(len == sizeof data && data == i);
    }
    return NULL;
}

static void *make_many(void *unused)
{
    for (int i = 0; i < 2000; i++) {
        int handle = 0;
        OK(tbus_new(&handle));
        CHECK(handle > 0);
        if (i % 10 == 0)
            OK(tbus_bind(handle, c));
        tbus_delete(&handle);
        CHECK(handle == -1);
    }
    return unused;
}

/* A thread sends and another receives by the same handle; others make handles and end them. */
static void threads(void)
{
    int one = bound("0.0.1.1"), two = bound("0.0.2.1");
    void *(*run[THREADS + 2])(void *) = {send_many, receive_many, send_many, receive_many, make_many, make_many};
    int *handles[THREADS + 2] = {&one, &one, &two, &two, NULL, NULL};
    pthread_t all[THREADS + 2];
    for (int i = 0; i < THREADS + 2; i++)
        CHECK(pthread_create(&all[i], NULL, run[i], handles[i]) == 0);
    for (int i = 0; i < THREADS + 2; i++)
        CHECK(pthread_join(all[i], NULL) == 0);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } checks[] = {{"peek", peek},     {"iovec", iovec}, {"broadcast", broadcast}, {"any", any},        {"hops", hops},
                  {"full", full},     {"events", events}, {"live", live},         {"threads", threads},
                  {"later", later}, {"added", added}, {"busy", busy},         {"damaged", damaged}};
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
        if (argc == 2 && strcmp(argv[1], checks[i].name) == 0) {
            OK(tbus_init_ex("1000", 0));
            a = address("0.0.1.1"), b = address("0.0.2.1"), c = address("0.0.3.1"), d = address("0.0.4.1");
            checks[i].run();
            tbus_fini();
            puts("done");
            return 0;
        }
    fprintf(stderr, "no such check\n");
    return 2;
}
