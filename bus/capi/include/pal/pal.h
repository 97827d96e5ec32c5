/* Old programs include this file for its names of types. libtbus needs nothing from it. */
#ifndef TBUS_PAL_PAL_H
#define TBUS_PAL_PAL_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#endif
