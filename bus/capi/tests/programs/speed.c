/* `speed COUNT BYTES one|any` sends and receives COUNT messages of BYTES bytes, from the one address or from any; its
 * instructions are counted. */
#include "check.h"

int main(int argc, char **argv)
{
    static char message[4096], buffer[4096];
    CHECK(argc == 4);
    long count = atol(argv[1]);
    size_t size = (size_t)atol(argv[2]);
    CHECK(size <= sizeof message);
    OK(tbus_init_ex("1000", 0));
    TBUSADDR a = address("0.0.1.1"), b = address("0.0.2.1");
    int one = bound("0.0.1.1"), two = bound("0.0.2.1");
    int any = strcmp(argv[3], "any") == 0;
    for (long i = 0; i < count; i++) {
        size_t len = sizeof buffer;
        TBUSADDR src = any ? TBUS_ADDR_ALL : a, dst = any ? TBUS_ADDR_ALL : b;
        OK(tbus_send(one, &a, &b, message, size, 0));
        OK(tbus_recv(two, &src, &dst, buffer, &len, 0));
    }
    tbus_fini();
    return 0;
}
