// A program as there are many: attach, bind, then send or receive in a loop. It must build and work as it stands.
//   old send LOCAL PEER COUNT     sends COUNT numbered messages
//   old recv LOCAL PEER COUNT     receives COUNT messages and prints them
//   old poll LOCAL PEER           looks once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pal/pal.h"
#include "tbus/tbus.h"

int main(int argc, char *argv[])
{
    if (argc < 4) {
        printf("usage: %s send|recv|poll LOCAL PEER [COUNT]\n", argv[0]);
        return 2;
    }
    const char *pszKey = "1000";
    int iHandle = 0;
    int iRet = tbus_init_ex(pszKey, 0);
    if (TBUS_SUCCESS != iRet) {
        printf("tbus_init_ex failed: %s\n", tbus_error_string(iRet));
        return 1;
    }
    iRet = tbus_new(&iHandle);
    if (TBUS_SUCCESS != iRet) {
        printf("tbus_new failed: %s\n", tbus_error_string(iRet));
        tbus_fini();
        return 1;
    }
    TBUSADDR iLocal = 0, iPeer = 0;
    iRet = tbus_addr_aton(argv[2], &iLocal);
    if (TBUS_SUCCESS == iRet)
        iRet = tbus_addr_aton(argv[3], &iPeer);
    if (TBUS_SUCCESS == iRet)
        iRet = tbus_bind(iHandle, iLocal);
    if (TBUS_SUCCESS != iRet) {
        printf("binding failed: %s\n", tbus_error_string(iRet));
        tbus_delete(&iHandle);
        tbus_fini();
        return 1;
    }
    int iCount = argc > 4 ? atoi(argv[4]) : 1;
    int iDone = 0;
    if (strcmp(argv[1], "send") == 0) {
        while (iDone < iCount) {
            char szMsg[64];
            snprintf(szMsg, sizeof(szMsg), "message %d", iDone);
            iRet = tbus_send(iHandle, &iLocal, &iPeer, szMsg, strlen(szMsg) + 1, 0);
            if ((unsigned)iRet == TBUS_ERR_CHANNEL_FULL) {
                usleep(1000);
                continue;
            }
            if (TBUS_SUCCESS != iRet) {
                printf("tbus_send failed: %s\n", tbus_error_string(iRet));
                break;
            }
            iDone++;
        }
    } else {
        for (int iLooks = 0; iDone < iCount && iLooks < 30000; iLooks++) {
            char szMsg[4096];
            size_t iLen = sizeof(szMsg);
            iRet = tbus_recv(iHandle, &iPeer, &iLocal, szMsg, &iLen, 0);
            if ((unsigned)iRet == TBUS_ERR_CHANNEL_EMPTY) {
                if (strcmp(argv[1], "poll") == 0) {
                    printf("No msg in tbus channel.\n");
                    iDone = iCount;
                    break;
                }
                usleep(1000);
                continue;
            }
            if (TBUS_SUCCESS != iRet) {
                printf("tbus_recv failed: %s\n", tbus_error_string(iRet));
                break;
            }
            printf("%.*s\n", (int)iLen, szMsg);
            iDone++;
        }
    }
    tbus_delete(&iHandle);
    tbus_fini();
    return iDone == iCount ? 0 : 1;
}
