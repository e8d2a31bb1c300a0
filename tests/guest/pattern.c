// pattern: data whose every sector names itself and its generation.
//
//   pattern write DEVICE SEED        write the whole disk, and flush
//   pattern check DEVICE SEED        read what an earlier boot wrote
//   pattern all   DEVICE SEED        write and read the whole disk; requests of odd sizes at odd
//                                    places, past the page cache and through it; flush; read again
//   pattern trim  DEVICE SEED MIB    discards and write-zeroes in the first MIB
//
// Exits with 0 if everything was as expected, 1 if not, 2 if it could not run.
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define LARGEST MIB
#define SLACK (64 * KIB)
#define PAGE 4096
// The generation of a sector that holds zeros.
#define ZEROS UINT32_MAX

static const char *device;
static int disk;
static uint64_t seed, span;
static unsigned sector;
static uint32_t *generation;
static unsigned char *buffer;
static uint64_t bytes_written, bytes_read, io_errors, bad_sectors, refused_discards;

static void fill(unsigned char *data, uint64_t offset, size_t length) {
    for (size_t at = 0; at < length; at += sector) {
        uint64_t number = (offset + at) / sector, *word = (uint64_t *)(data + at);
        uint64_t value = mix(seed * 31 + number * 131071 + generation[number]);
        word[0] = number;
        word[1] = generation[number];
        for (unsigned i = 2; i < sector / 8; i++) word[i] = value += GOLDEN;
    }
}

static int is_right(const uint64_t *word, uint64_t number) {
    int right = 1;
    if (generation[number] == ZEROS) {
        for (unsigned i = 0; i < sector / 8; i++) right &= word[i] == 0;
        return right;
    }
    uint64_t value = mix(seed * 31 + number * 131071 + generation[number]);
    right &= word[0] == number && word[1] == generation[number];
    for (unsigned i = 2; i < sector / 8; i++) right &= word[i] == (value += GOLDEN);
    return right;
}

static void check(const unsigned char *data, uint64_t offset, size_t length) {
    for (size_t at = 0; at < length; at += sector) {
        uint64_t number = (offset + at) / sector;
        const uint64_t *word = (const uint64_t *)(data + at);
        if (is_right(word, number) || bad_sectors++ >= SHOWN) continue;
        printf("PATTERN sector %" PRIu64 " is wrong: generation %u, and it begins with %" PRIx64
               " %" PRIx64 "\n", number, generation[number], word[0], word[1]);
    }
}

static int done(const char *what, uint64_t offset, size_t length, ssize_t result) {
    if (result == (ssize_t)length) return 1;
    if (io_errors++ < SHOWN)
        printf("PATTERN %s of %zu at %" PRIu64 ": %zd %s\n", what, length, offset, result,
               result < 0 ? strerror(errno) : "");
    return 0;
}

static void write_at(unsigned char *data, uint64_t offset, size_t length) {
    fill(data, offset, length);
    done("write", offset, length, pwrite(disk, data, length, offset));
    bytes_written += length;
}

static void rewrite_at(unsigned char *data, uint64_t offset, size_t length) {
    for (uint64_t s = offset / sector; s < (offset + length) / sector; s++)
        generation[s] = generation[s] == ZEROS ? 1 : generation[s] + 1;
    write_at(data, offset, length);
}

static void read_at(unsigned char *data, uint64_t offset, size_t length) {
    memset(data, 0x5a, length);
    if (done("read", offset, length, pread(disk, data, length, offset))) check(data, offset, length);
    bytes_read += length;
}

static size_t piece(uint64_t offset, size_t step) {
    return offset + step > span ? span - offset : step;
}

static void write_all(size_t step) {
    for (uint64_t at = 0; at < span; at += step) write_at(buffer, at, piece(at, step));
}

static void read_all(size_t step) {
    for (uint64_t at = 0; at < span; at += step) read_at(buffer, at, piece(at, step));
}

static void flush(void) {
    if (fsync(disk)) {
        printf("PATTERN fsync: %s\n", strerror(errno));
        io_errors++;
    }
}

static void reopen(int flags) {
    if (disk > 0) close(disk);
    disk = open(device, O_RDWR | flags);
    require(disk >= 0, device);
}

// A place for `length` bytes that a random number chooses.
static uint64_t place(uint64_t random, size_t length, unsigned unit) {
    return random % (span / unit - length / unit) * unit;
}

// From one sector to 1 MiB, most of them small; buffers begin anywhere in a page.
static void direct_requests(unsigned count) {
    uint64_t random = seed;
    for (unsigned i = 0; i < count; i++) {
        random = mix(random + i);
        uint64_t most = (1ull << random % 12) * 512 / sector;
        size_t length = ((random >> 8) % (most ? most : 1) + 1) * sector;
        if (length > LARGEST) length = LARGEST;
        uint64_t offset = place(random >> 20, length, sector);
        unsigned char *data = buffer + (random >> 12 & 7) * sector;
        if (random >> 16 & 1)
            rewrite_at(data, offset, length);
        else
            read_at(data, offset, length);
    }
    flush();
}

// The kernel cuts and merges these as it likes.
static void cached_requests(unsigned count) {
    reopen(0);
    for (unsigned i = 0; i < count; i++) {
        uint64_t random = mix(seed + 99 + i);
        size_t length = ((random >> 8) % 64 + 1) * sector;
        rewrite_at(buffer, place(random >> 20, length, sector), length);
    }
    flush();
    ioctl(disk, BLKFLSBUF, 0);
    reopen(O_DIRECT);
}

// A discard may leave anything behind, but it must be readable, and writable again.
static void discard(uint64_t offset, uint64_t length) {
    uint64_t range[2] = {offset, length};
    int result = ioctl(disk, BLKDISCARD, range);
    if (result && errno == EOPNOTSUPP) {
        refused_discards++;
        return;
    }
    if (!done("discard", offset, 0, result)) return;
    done("read after a discard", offset, length, pread(disk, buffer, length, offset));
    rewrite_at(buffer, offset, length);
}

static void write_zeroes(uint64_t offset, uint64_t length) {
    uint64_t range[2] = {offset, length};
    if (!done("write-zeroes", offset, 0, ioctl(disk, BLKZEROOUT, range))) return;
    for (uint64_t s = offset / sector; s < (offset + length) / sector; s++) generation[s] = ZEROS;
}

static void trim(void) {
    for (unsigned i = 0; i < 64; i++) {
        uint64_t length = (mix(seed + i) % 64 + 1) * PAGE;
        uint64_t offset = place(mix(seed + i + 1000), length, PAGE);
        if (i % 2)
            write_zeroes(offset, length);
        else
            discard(offset, length);
    }
}

static void run(const char *mode) {
    if (!strcmp(mode, "check")) {
        read_all(256 * KIB);
        return;
    }
    write_all(256 * KIB);
    if (!strcmp(mode, "all")) {
        read_all(MIB);
        direct_requests(3000);
        read_all(256 * KIB);
        cached_requests(500);
        read_all(60 * KIB);
    } else if (!strcmp(mode, "trim")) {
        trim();
        read_all(256 * KIB);
    }
    flush();
}

int main(int count, char **words) {
    if (count < 4) {
        fprintf(stderr, "usage: pattern write|check|all|trim DEVICE SEED [MIB]\n");
        return 2;
    }
    device = words[2];
    seed = strtoull(words[3], NULL, 0);
    reopen(O_DIRECT);
    require(!ioctl(disk, BLKGETSIZE64, &span), "BLKGETSIZE64");
    require(!ioctl(disk, BLKSSZGET, &sector), "BLKSSZGET");
    uint64_t most = count > 4 ? strtoull(words[4], NULL, 0) * MIB : span;
    if (span > most) span = most;
    generation = calloc(span / sector, sizeof *generation);
    buffer = mmap(NULL, LARGEST + SLACK, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    require(generation && buffer != MAP_FAILED, "memory");
    run(words[1]);
    int good = !io_errors && !bad_sectors;
    if (refused_discards) printf("PATTERN the disk takes no discards\n");
    printf("PATTERN %s span=%" PRIu64 " written=%" PRIu64 " read=%" PRIu64 " io_errors=%" PRIu64
           " bad_sectors=%" PRIu64 " %s\n", words[1], span, bytes_written, bytes_read, io_errors,
           bad_sectors, good ? "GOOD" : "BAD");
    return good ? 0 : 1;
}
