// memhog: more anonymous memory than there is RAM, which never stops changing, and every page of
// which must come back from swap as it was left.
//
//   memhog MIB THREADS SECONDS
//
// Each visit to a page checks it and then writes its next version word by word, so that a
// write-out in the middle sees a mixture. The versions are also kept apart, in locked memory.
// Besides THREADS walkers there is a hunter, which looks for pages that are not mapped but still
// in the swap cache - nearly always those that are being written out - and rewrites them.
//
// Exits with 0 if every page was right and some were caught in the swap cache, 1 if not, 2 if it
// could not run, 3 if a page could not be read.
#include "common.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / 8)
#define MAGIC 0x6d656d686f672121ull
#define WALKERS_MAX 16
// How many pages the hunter looks at together.
#define HUNTED 512

static unsigned char *memory;
static uint32_t *version;
static _Atomic unsigned char *taken;
static size_t pages;
static unsigned walkers;
static double seconds;
static _Atomic uint64_t visits, caught, bad_pages, bad_at_end;
static _Atomic int stop;

static int try_take(size_t page) {
    return !atomic_exchange_explicit(&taken[page], 1, memory_order_acquire);
}

static void give_back(size_t page) {
    atomic_store_explicit(&taken[page], 0, memory_order_release);
}

static volatile uint64_t *words_of(size_t page) {
    return (volatile uint64_t *)(memory + page * PAGE);
}

static uint64_t word(size_t page, uint32_t version, unsigned index) {
    uint64_t x = page * GOLDEN + version * 0xbf58476d1ce4e5b9ull + index;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebull;
    return x ^ x >> 32;
}

static void put(size_t page, uint32_t version) {
    volatile uint64_t *words = words_of(page);
    words[0] = page ^ MAGIC;
    words[1] = version;
    for (unsigned i = 2; i < WORDS; i++) words[i] = word(page, version, i);
}

static int is_right(size_t page) {
    volatile uint64_t *words = words_of(page);
    int right = words[0] == (page ^ MAGIC) && words[1] == version[page];
    for (unsigned i = 2; i < WORDS; i++) right &= words[i] == word(page, version[page], i);
    return right;
}

// Checks a page that is taken, and writes its next versions.
static void visit(size_t page, unsigned times) {
    if (!is_right(page) && atomic_fetch_add(&bad_pages, 1) < SHOWN)
        printf("MEMHOG page %zu is wrong (version %u)\n", page, version[page]);
    while (times--) put(page, ++version[page]);
}

static void unreadable(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    char text[96];
    size_t page = ((size_t)info->si_addr - (size_t)memory) / PAGE;
    int length = snprintf(text, sizeof text, "MEMHOG page %zu cannot be read from swap\n", page);
    if (write(STDOUT_FILENO, text, length) < 0) _exit(4);
    _exit(3);
}

static void *walk(void *argument) {
    size_t number = (uintptr_t)argument;
    size_t first = pages * number / walkers, count = pages * (number + 1) / walkers - first;
    uint64_t random = number * 77 + 1, mine = 0;
    double end = now() + seconds;
    for (size_t i = 0; i % 64 || now() < end; i++) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        // Half of the visits go back a little: to pages that are just being written out.
        size_t back = random >> 40 & 1 ? 0 : (random >> 33) % 2048 % count;
        size_t page = first + (i + count - back) % count;
        if (!try_take(page)) continue;
        visit(page, 1);
        give_back(page);
        mine++;
    }
    visits += mine;
    return NULL;
}

// What /proc/self/pagemap says of a page that is in swap: bit 62 without bit 63.
static int is_swapped(uint64_t entry) { return (entry >> 62 & 3) == 1; }

// Rewrites those of `count` pages that are in the swap cache; returns how many, or -1 at an error.
static int hunt_among(int pagemap, size_t first, size_t count) {
    uint64_t entries[HUNTED];
    unsigned char in_core[HUNTED];
    ssize_t wanted = count * sizeof *entries;
    off_t place = ((size_t)memory / PAGE + first) * sizeof *entries;
    if (pread(pagemap, entries, wanted, place) != wanted) return -1;
    // mincore(2) says of a page that is not mapped whether the swap cache has it.
    if (mincore(memory + first * PAGE, count * PAGE, in_core)) return -1;
    int hits = 0;
    for (size_t i = 0; i < count; i++) {
        if (!is_swapped(entries[i]) || !(in_core[i] & 1) || !try_take(first + i)) continue;
        visit(first + i, 12);
        give_back(first + i);
        hits++;
    }
    caught += hits;
    return hits;
}

static void *hunt(void *argument) {
    (void)argument;
    int pagemap = open("/proc/self/pagemap", O_RDONLY);
    require(pagemap >= 0, "/proc/self/pagemap");
    unsigned stays = 0;
    for (size_t at = 0; !stop;) {
        int hits = hunt_among(pagemap, at, pages - at < HUNTED ? pages - at : HUNTED);
        require(hits >= 0, "the swap cache");
        // Reclaim goes on from where pages were found: stay there for a while, and look behind.
        if (hits && stays++ < 200) {
            if (stays % 2 && at >= HUNTED) at -= HUNTED;
            continue;
        }
        stays = 0;
        at = at + HUNTED < pages ? at + HUNTED : 0;
    }
    close(pagemap);
    return NULL;
}

static void *check_all(void *argument) {
    size_t number = (uintptr_t)argument;
    for (size_t p = pages * number / walkers; p < pages * (number + 1) / walkers; p++)
        bad_at_end += !is_right(p);
    return NULL;
}

static void start_all(pthread_t *threads, void *(*work)(void *)) {
    for (unsigned i = 0; i < walkers; i++)
        require(!pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)i), "a thread");
}

static void join_all(pthread_t *threads) {
    for (unsigned i = 0; i < walkers; i++) pthread_join(threads[i], NULL);
}

// Swaps in several pages at a time from here on, so that the last look at each does not take long.
static void read_ahead(void) {
    FILE *cluster = fopen("/proc/sys/vm/page-cluster", "w");
    if (!cluster) return;
    fputs("4\n", cluster);
    fclose(cluster);
}

// A counter of /proc/vmstat.
static uint64_t counter(const char *name) {
    FILE *file = fopen("/proc/vmstat", "r");
    char found[64];
    uint64_t value, result = 0;
    while (file && fscanf(file, "%63s %" SCNu64, found, &value) == 2)
        if (!strcmp(found, name)) result = value;
    if (file) fclose(file);
    return result;
}

static void *anonymous(size_t length) {
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(memory != MAP_FAILED, "memory");
    return memory;
}

static void prepare(void) {
    struct sigaction action = {.sa_sigaction = unreadable, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    memory = anonymous(pages * PAGE);
    madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
    version = anonymous(pages * sizeof *version);
    taken = anonymous(pages);
    require(!mlock(version, pages * sizeof *version) && !mlock((void *)taken, pages), "mlock");
    double start = now();
    for (size_t p = 0; p < pages; p++) put(p, 0);
    printf("MEMHOG filled %zu MiB in %.1f s\n", pages / 256, now() - start);
    fflush(stdout);
}

int main(int count, char **words) {
    if (count != 4 || atoi(words[2]) < 1 || atoi(words[2]) > WALKERS_MAX) {
        fprintf(stderr, "usage: memhog MIB THREADS SECONDS\n");
        return 2;
    }
    pages = atoi(words[1]) * (MIB / PAGE);
    walkers = atoi(words[2]);
    seconds = atof(words[3]);
    uint64_t in = counter("pswpin"), out = counter("pswpout");
    pthread_t threads[WALKERS_MAX], hunter;
    prepare();
    start_all(threads, walk);
    require(!pthread_create(&hunter, NULL, hunt, NULL), "a thread");
    join_all(threads);
    stop = 1;
    pthread_join(hunter, NULL);
    read_ahead();
    start_all(threads, check_all);
    join_all(threads);
    int good = !bad_pages && !bad_at_end && caught;
    printf("MEMHOG visits=%" PRIu64 " caught_in_swap_cache=%" PRIu64 " bad_pages=%" PRIu64
           " bad_at_end=%" PRIu64 " swapped_in=%" PRIu64 " swapped_out=%" PRIu64 " %s\n", visits,
           caught, bad_pages, bad_at_end, counter("pswpin") - in, counter("pswpout") - out,
           good ? "GOOD" : "BAD");
    return good ? 0 : 1;
}
