// mutate: O_DIRECT requests whose buffers another thread changes while they are in flight.
//
//   mutate ENGINE BLOCK_KIB DEPTH SPAN_MIB SECONDS PATH      ENGINE: aio, uring or psync
//
// A block is what one request moves. Each 512 bytes of it hold their own number, the generation of
// the block and words that follow from both, all of which stay; and in the middle one hot word,
// which the mutator stores anew, again and again, while the request is in flight. So a request may
// put any of the hot words on the disk, but it must not fail, and all else must be what the last
// write put there. Three phases: writes that are mutated; reads into buffers that are mutated; and
// a quiet look at every block.
//
// Exits with 0 if nothing failed and nothing was wrong, 1 if not, 2 if it could not run.
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SECTOR 512
#define WORDS (SECTOR / 8)
#define HOT_WORD (WORDS / 2)
#define HOT 0x484f5421ull
#define MAGIC 0x6d757461746521aaull
#define DEPTH_MAX 64
// How many words the mutator stores into a buffer before it goes on to the next.
#define BURST 4

// What one request in flight has to itself. It has every DEPTHth block, so that none overlap.
struct slot {
    unsigned char *buffer;
    _Atomic int in_flight;
    size_t block;
    uint64_t generation;
    uint64_t count;
};

struct counts {
    uint64_t requests, bad_sectors, errors;
    int last_error;
};

static int file;
static size_t block_bytes, blocks;
static unsigned depth;
static double seconds;
static struct slot slots[DEPTH_MAX];
// Of each block: the generation that was last written with success, or 0.
static uint64_t *stored;
// Of each block: whether a failed write may have left anything there.
static unsigned char *in_doubt;
static _Atomic uint64_t last_generation;
static _Atomic int stop;
static uint64_t stores;

static void fill(struct slot *slot) {
    for (size_t at = 0; at < block_bytes; at += SECTOR) {
        uint64_t number = (slot->block * block_bytes + at) / SECTOR;
        uint64_t value = mix(number * 65537 + slot->generation);
        uint64_t *words = (uint64_t *)(slot->buffer + at);
        words[0] = MAGIC ^ number;
        words[1] = slot->generation;
        for (unsigned i = 2; i < WORDS; i++) words[i] = value += GOLDEN;
        words[HOT_WORD] = HOT << 32;
    }
}

static unsigned bad_sectors(const struct slot *slot, uint64_t generation) {
    unsigned bad = 0;
    for (size_t at = 0; at < block_bytes; at += SECTOR) {
        uint64_t number = (slot->block * block_bytes + at) / SECTOR;
        uint64_t value = mix(number * 65537 + generation);
        const uint64_t *words = (const uint64_t *)(slot->buffer + at);
        int right = words[0] == (MAGIC ^ number) && words[1] == generation;
        for (unsigned i = 2; i < WORDS; i++) {
            value += GOLDEN;
            right &= i == HOT_WORD ? words[i] >> 32 == HOT : words[i] == value;
        }
        bad += !right;
    }
    return bad;
}

static void *mutate(void *argument) {
    uint64_t random = 99, count = 0;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        int any = 0;
        for (unsigned i = 0; i < depth; i++) {
            if (!atomic_load_explicit(&slots[i].in_flight, memory_order_acquire)) continue;
            any = 1;
            for (int j = 0; j < BURST; j++) {
                random = random * 6364136223846793005ull + 1442695040888963407ull;
                size_t sector = (random >> 33) % (block_bytes / SECTOR);
                uint64_t *words = (uint64_t *)(slots[i].buffer + sector * SECTOR);
                uint64_t hot = HOT << 32 | (count++ & UINT32_MAX);
                __atomic_store_n(&words[HOT_WORD], hot, __ATOMIC_RELAXED);
            }
        }
        if (!any) sched_yield();
    }
    *(uint64_t *)argument = count;
    return NULL;
}

// Chooses the next block of a slot, and fills its buffer for a write.
static void begin(struct slot *slot, int write) {
    size_t own = blocks / depth, index = slot->count++;
    slot->block = (mix(index / own * 7919 + (slot - slots)) + index) % own * depth + (slot - slots);
    if (write) {
        slot->generation = ++last_generation;
        fill(slot);
    }
    slot->in_flight = 1;
}

static void end(struct slot *slot, int write, long result, struct counts *counts) {
    slot->in_flight = 0;
    counts->requests++;
    if (result != (long)block_bytes) {
        counts->errors++;
        counts->last_error = result < 0 ? -result : EIO;
        in_doubt[slot->block] |= write;
    } else if (write) {
        stored[slot->block] = slot->generation;
        in_doubt[slot->block] = 0;
    } else if (stored[slot->block] && !in_doubt[slot->block]) {
        counts->bad_sectors += bad_sectors(slot, stored[slot->block]);
    }
}

static long move(struct slot *slot, int write) {
    off_t offset = slot->block * block_bytes;
    ssize_t result = write ? pwrite(file, slot->buffer, block_bytes, offset)
                           : pread(file, slot->buffer, block_bytes, offset);
    return result < 0 ? -errno : result;
}

// ---- One thread for each request in flight.

struct worker {
    struct slot *slot;
    int write;
    double until;
    struct counts counts;
};

static void *work(void *argument) {
    struct worker *worker = argument;
    while (now() < worker->until) {
        begin(worker->slot, worker->write);
        end(worker->slot, worker->write, move(worker->slot, worker->write), &worker->counts);
    }
    return NULL;
}

static void psync(int write, double until, struct counts *counts) {
    pthread_t threads[DEPTH_MAX];
    struct worker workers[DEPTH_MAX];
    for (unsigned i = 0; i < depth; i++) {
        workers[i] = (struct worker){.slot = &slots[i], .write = write, .until = until};
        require(!pthread_create(&threads[i], NULL, work, &workers[i]), "a thread");
    }
    for (unsigned i = 0; i < depth; i++) {
        pthread_join(threads[i], NULL);
        counts->requests += workers[i].counts.requests;
        counts->bad_sectors += workers[i].counts.bad_sectors;
        counts->errors += workers[i].counts.errors;
        if (workers[i].counts.errors) counts->last_error = workers[i].counts.last_error;
    }
}

// ---- Linux AIO.

static void aio_submit(aio_context_t context, unsigned index, int write) {
    struct slot *slot = &slots[index];
    begin(slot, write);
    struct iocb block = {
        .aio_data = index,
        .aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
        .aio_fildes = file,
        .aio_buf = (uintptr_t)slot->buffer,
        .aio_nbytes = block_bytes,
        .aio_offset = slot->block * block_bytes,
    };
    struct iocb *blocks[] = {&block};
    require(syscall(SYS_io_submit, context, 1, blocks) == 1, "io_submit");
}

static void aio(int write, double until, struct counts *counts) {
    aio_context_t context = 0;
    require(!syscall(SYS_io_setup, depth, &context), "io_setup");
    unsigned in_flight = depth;
    for (unsigned i = 0; i < depth; i++) aio_submit(context, i, write);
    while (in_flight) {
        struct io_event events[DEPTH_MAX];
        long count = syscall(SYS_io_getevents, context, 1, DEPTH_MAX, events, NULL);
        require(count > 0 || errno == EINTR, "io_getevents");
        for (long i = 0; i < count; i++) {
            end(&slots[events[i].data], write, (long)events[i].res, counts);
            if (now() < until)
                aio_submit(context, events[i].data, write);
            else
                in_flight--;
        }
    }
    syscall(SYS_io_destroy, context);
}

// ---- io_uring, by its system calls.

struct ring {
    int file;
    char *memory;
    size_t length;
    struct io_uring_params parameters;
    struct io_uring_sqe *entries;
};

static unsigned *field(const struct ring *ring, unsigned offset) {
    return (unsigned *)(ring->memory + offset);
}

static struct ring ring_open(void) {
    struct ring ring = {0};
    struct io_uring_params *p = &ring.parameters;
    ring.file = syscall(SYS_io_uring_setup, DEPTH_MAX, p);
    require(ring.file >= 0, "io_uring_setup");
    size_t submission = p->sq_off.array + p->sq_entries * sizeof(unsigned);
    size_t completion = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    ring.length = submission > completion ? submission : completion;
    int flags = MAP_SHARED | MAP_POPULATE, access = PROT_READ | PROT_WRITE;
    ring.memory = mmap(NULL, ring.length, access, flags, ring.file, IORING_OFF_SQ_RING);
    ring.entries = mmap(NULL, p->sq_entries * sizeof *ring.entries, access, flags, ring.file,
                        IORING_OFF_SQES);
    require(ring.memory != MAP_FAILED && ring.entries != MAP_FAILED, "io_uring memory");
    return ring;
}

static void ring_close(struct ring *ring) {
    munmap(ring->memory, ring->length);
    munmap(ring->entries, ring->parameters.sq_entries * sizeof *ring->entries);
    close(ring->file);
}

static void ring_push(const struct ring *ring, unsigned index, int write) {
    struct slot *slot = &slots[index];
    unsigned *tail = field(ring, ring->parameters.sq_off.tail);
    unsigned place = *tail & *field(ring, ring->parameters.sq_off.ring_mask);
    begin(slot, write);
    ring->entries[place] = (struct io_uring_sqe){
        .opcode = write ? IORING_OP_WRITE : IORING_OP_READ,
        .fd = file,
        .addr = (uintptr_t)slot->buffer,
        .len = block_bytes,
        .off = slot->block * block_bytes,
        .user_data = index,
    };
    field(ring, ring->parameters.sq_off.array)[place] = place;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
}

// Submits what was pushed, and waits for something to end.
static void ring_enter(const struct ring *ring, unsigned pushed) {
    int flags = IORING_ENTER_GETEVENTS;
    long taken;
    do taken = syscall(SYS_io_uring_enter, ring->file, pushed, 1, flags, NULL, 0);
    while (taken < 0 && errno == EINTR);
    require(taken == pushed, "io_uring_enter");
}

static void uring(int write, double until, struct counts *counts) {
    struct ring ring = ring_open();
    unsigned *head = field(&ring, ring.parameters.cq_off.head);
    unsigned *tail = field(&ring, ring.parameters.cq_off.tail);
    unsigned mask = *field(&ring, ring.parameters.cq_off.ring_mask);
    struct io_uring_cqe *completions = (void *)field(&ring, ring.parameters.cq_off.cqes);
    unsigned in_flight = depth, pushed = depth;
    for (unsigned i = 0; i < depth; i++) ring_push(&ring, i, write);
    while (in_flight) {
        ring_enter(&ring, pushed);
        pushed = 0;
        while (*head != __atomic_load_n(tail, __ATOMIC_ACQUIRE)) {
            struct io_uring_cqe completion = completions[*head & mask];
            __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
            end(&slots[completion.user_data], write, completion.res, counts);
            if (now() < until) {
                ring_push(&ring, completion.user_data, write);
                pushed++;
            } else {
                in_flight--;
            }
        }
    }
    ring_close(&ring);
}

// ---- The phases.

typedef void engine(int write, double until, struct counts *counts);

static engine *engine_named(const char *name) {
    if (!strcmp(name, "aio")) return aio;
    if (!strcmp(name, "uring")) return uring;
    if (!strcmp(name, "psync")) return psync;
    fprintf(stderr, "mutate: no engine %s\n", name);
    exit(2);
}

// Says how a phase ended, and returns whether that is fine.
static int report(const char *phase, const struct counts *counts) {
    printf("MUTATE %-5s requests=%" PRIu64 " errors=%" PRIu64 "%s%s bad_sectors=%" PRIu64
           " stores_in_flight=%" PRIu64 "\n", phase, counts->requests, counts->errors,
           counts->errors ? " last: " : "", counts->errors ? strerror(counts->last_error) : "",
           counts->bad_sectors, stores);
    fflush(stdout);
    return !counts->errors && !counts->bad_sectors;
}

static int mutated(engine *engine, int write) {
    pthread_t mutator;
    struct counts counts = {0};
    for (unsigned i = 0; i < depth; i++) slots[i].count = 0;
    stop = 0;
    require(!pthread_create(&mutator, NULL, mutate, &stores), "a thread");
    engine(write, now() + seconds, &counts);
    stop = 1;
    pthread_join(mutator, NULL);
    int good = report(write ? "write" : "read", &counts);
    if (!stores) printf("MUTATE nothing was changed in flight\n");
    return good && stores;
}

static int quiet(void) {
    struct slot *slot = &slots[0];
    struct counts counts = {0};
    stores = 0;
    for (slot->block = 0; slot->block < blocks; slot->block++)
        if (stored[slot->block] || in_doubt[slot->block]) end(slot, 0, move(slot, 0), &counts);
    return report("again", &counts);
}

// Fills a file, so that what is measured overwrites, and allocates nothing.
static void prefill(const char *path, size_t span) {
    int plain = open(path, O_WRONLY);
    char *zeros = calloc(1, MIB);
    require(plain >= 0 && zeros, path);
    for (size_t at = 0; at < span; at += MIB)
        require(pwrite(plain, zeros, MIB, at) == MIB, "filling the file");
    require(!fsync(plain), "fsync");
    close(plain);
    free(zeros);
}

static void prepare(const char *path, size_t span) {
    file = open(path, O_RDWR | O_CREAT | O_DIRECT, 0644);
    struct stat status;
    uint64_t capacity = span;
    require(file >= 0 && !fstat(file, &status), path);
    if (S_ISBLK(status.st_mode))
        require(!ioctl(file, BLKGETSIZE64, &capacity), "BLKGETSIZE64");
    else
        prefill(path, span);
    if (span > capacity) span = capacity;
    blocks = span / block_bytes / depth * depth;
    stored = calloc(blocks, sizeof *stored);
    in_doubt = calloc(blocks, 1);
    unsigned char *memory = mmap(NULL, block_bytes * depth, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    require(blocks && stored && in_doubt && memory != MAP_FAILED, "memory");
    for (unsigned i = 0; i < depth; i++) slots[i].buffer = memory + i * block_bytes;
}

int main(int count, char **words) {
    if (count != 7 || atoi(words[2]) < 1 || atoi(words[3]) < 1 || atoi(words[3]) > DEPTH_MAX) {
        fprintf(stderr, "usage: mutate aio|uring|psync BLOCK_KIB DEPTH SPAN_MIB SECONDS PATH\n");
        return 2;
    }
    engine *engine = engine_named(words[1]);
    block_bytes = atoi(words[2]) * KIB;
    depth = atoi(words[3]);
    seconds = atof(words[5]);
    prepare(words[6], atoi(words[4]) * MIB);
    int good = mutated(engine, 1);
    if (fsync(file)) {
        printf("MUTATE fsync: %s\n", strerror(errno));
        good = 0;
    }
    good &= mutated(engine, 0);
    good &= quiet();
    return good ? 0 : 1;
}
