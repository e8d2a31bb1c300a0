// What the programs of the guest share.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define KIB (1ull << 10)
#define MIB (1ull << 20)
#define GOLDEN 0x9e3779b97f4a7c15ull

// How many faults of a kind are printed; all are counted.
#define SHOWN 8

static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

// A number that looks random, from any other (splitmix64).
static inline uint64_t mix(uint64_t x) {
    x += GOLDEN;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// Ends the program when the scenario could not even be set up.
static inline void require(int holds, const char *what) {
    if (!holds) {
        perror(what);
        exit(2);
    }
}
