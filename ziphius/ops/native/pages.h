/* What the kernel is told of pages that a file's map has. Where it cannot be told, it guesses. */
#pragma once
#include <stdint.h>
#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

/* Read `bytes` from `at` on ahead of their use, without waiting. */
static inline void pages_wanted(const void *at, int64_t bytes) {
#ifdef POSIX_MADV_WILLNEED
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)at / page * page;
    posix_madvise((void *)first, (uintptr_t)at + (uintptr_t)bytes - first, POSIX_MADV_WILLNEED);
#else
    (void)at, (void)bytes;
#endif
}

/* Read nothing around a page that is missing: what lies beside it is another expert. */
static inline void pages_scattered(const void *at, int64_t bytes) {
#ifdef POSIX_MADV_RANDOM
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)at / page * page;
    posix_madvise((void *)first, (uintptr_t)at + (uintptr_t)bytes - first, POSIX_MADV_RANDOM);
#else
    (void)at, (void)bytes;
#endif
}
