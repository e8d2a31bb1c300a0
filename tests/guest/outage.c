// outage: writers whose every step can be foretold, for a machine that dies in the middle of one.
//
//   outage load  DIRECTORY SEED DONE,DONE,..   writes until it is killed
//   outage check DIRECTORY SEED DONE,DONE,..   looks whether all is there that an earlier load had done
//
// Each of WRITERS writers has a directory and does one step after the other: which, its number, the
// seed and the steps before it decide. Before a step its number is made durable in a journal; after
// it, with what it changed fsynced, the console says "DONE writer number". The last such numbers of
// all writers are DONE. Others write meanwhile and fsync nothing: of what they leave, each 512 bytes
// are whole or zeros.
//
// check exits with 0 if everything was as expected, 1 if not; load ends when something fails.
#include "common.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WRITERS 6
#define SLOTS 16
#define UNIT 512
// Of a file; and what direct I/O is a multiple of, whatever the disk has.
#define UNITS_MAX 512
#define DIRECT_UNITS 8
#define DIRECT_BYTES (DIRECT_UNITS * UNIT)
// Of a block of the file system.
#define BLOCK_UNITS 8

#define NOISES 2
#define NOISE_MIB 16
#define NOISE_UNITS (128 * KIB / UNIT)

static const char *top;
static uint64_t seed, done[WRITERS], faults;

enum kind { REPLACE, OVERWRITE, APPEND, RENAME, TRUNCATE, UNLINK };
static const char *const kinds[] = {"replace", "overwrite", "append", "rename", "truncate", "unlink"};

// A step of a writer: `units` from `first` on of the file in `slot`.
struct step {
    enum kind kind;
    int direct;
    unsigned slot, other, first, units;
};

// A file: of each unit the number of the step that wrote it.
struct file {
    int there;
    unsigned units;
    uint32_t step[UNITS_MAX];
};

struct writer {
    unsigned number;
    int directory, journal;
    unsigned char *buffer;
    struct file files[SLOTS];
};

static void fault(const char *format, unsigned writer, uint64_t a, uint64_t b, const char *what) {
    if (faults++ >= SHOWN) return;
    printf("OUTAGE writer %u: ", writer);
    printf(format, a, b);
    printf("%s\n", what);
}

static void *aligned(size_t bytes) {
    void *memory = aligned_alloc(DIRECT_BYTES, bytes);
    require(memory != NULL, "memory");
    memset(memory, 0, bytes);
    return memory;
}

// What a writer stores in a step. Its first words name it.
static void fill_unit(void *unit, unsigned writer, uint32_t step, uint64_t index) {
    uint64_t *word = unit, value = mix(mix(mix(seed + writer) + step) + index);
    word[0] = (uint64_t)step << 32 | index;
    word[1] = writer;
    for (unsigned i = 2; i < UNIT / 8; i++) word[i] = value += GOLDEN;
}

static int is_unit(const void *unit, unsigned writer, uint32_t step, uint64_t index) {
    unsigned char expected[UNIT] __attribute__((aligned(8)));
    fill_unit(expected, writer, step, index);
    return !memcmp(unit, expected, UNIT);
}

static int is_zero(const unsigned char *unit) {
    return !unit[0] && !memcmp(unit, unit + 1, UNIT - 1);
}

static unsigned at_most(unsigned value, unsigned most) {
    return value < most ? value : most;
}

static struct step plan(const struct writer *writer, uint32_t number) {
    uint64_t random = mix(mix(seed * 31 + writer->number) + number), more = mix(random);
    unsigned slot = random % SLOTS, length = 1 + (more >> 8) % (1u << more % 10);
    const struct file *file = &writer->files[slot];
    struct step step = {.slot = slot, .direct = random >> 8 & 1};
    static const enum kind choice[16] = {
        REPLACE, REPLACE, REPLACE, REPLACE, OVERWRITE, OVERWRITE, OVERWRITE, OVERWRITE, OVERWRITE,
        APPEND, APPEND, APPEND, RENAME, RENAME, TRUNCATE, UNLINK};
    step.kind = file->there ? choice[random >> 16 & 15] : REPLACE;
    step.other = (slot + 1 + (random >> 24) % (SLOTS - 1)) % SLOTS;
    if (step.kind == OVERWRITE && !file->units) step.kind = APPEND;
    if (step.kind == APPEND && file->units == UNITS_MAX) step.kind = TRUNCATE;
    switch (step.kind) {
    case REPLACE:
        step.units = step.direct ? (length + DIRECT_UNITS - 1) / DIRECT_UNITS * DIRECT_UNITS : length;
        break;
    case OVERWRITE:
        step.first = (more >> 32) % file->units;
        step.units = at_most(length, file->units - step.first);
        if (file->units < DIRECT_UNITS) step.direct = 0;
        if (step.direct) {
            unsigned most = file->units / DIRECT_UNITS, first = at_most(step.first / DIRECT_UNITS, most - 1);
            step.units = at_most(1 + step.units / DIRECT_UNITS, most - first) * DIRECT_UNITS;
            step.first = first * DIRECT_UNITS;
        }
        break;
    case APPEND:
        step.direct = 0;
        step.first = file->units;
        step.units = at_most(length, UNITS_MAX - file->units);
        break;
    case TRUNCATE:
        step.units = file->units ? (more >> 32) % file->units : 0;
        break;
    default:
        break;
    }
    return step;
}

// What the step does to the files, when all of it is done.
static void apply(struct file *files, const struct step *step, uint32_t number) {
    struct file *file = &files[step->slot];
    switch (step->kind) {
    case REPLACE:
    case OVERWRITE:
    case APPEND:
        if (step->kind != OVERWRITE) file->units = step->first + step->units;
        file->there = 1;
        for (unsigned i = 0; i < step->units; i++) file->step[step->first + i] = number;
        break;
    case RENAME:
        files[step->other] = *file;
        file->there = 0;
        break;
    case TRUNCATE:
        file->units = step->units;
        break;
    case UNLINK:
        file->there = 0;
        break;
    }
}

static void name_slot(char *name, unsigned slot) {
    sprintf(name, "file%u", slot);
}

// Ends the program, which ends the scenario, when a step could not be done.
static void must(int holds, const struct writer *writer, uint32_t number, const char *what) {
    if (holds) return;
    printf("OUTAGE writer %u step %u: %s: %s\n", writer->number, number, what, strerror(errno));
    exit(1);
}

static void write_units(struct writer *writer, int file, const struct step *step, uint32_t number) {
    size_t bytes = (size_t)step->units * UNIT;
    for (unsigned i = 0; i < step->units; i++)
        fill_unit(writer->buffer + i * UNIT, writer->number, number, step->first + i);
    ssize_t written = pwrite(file, writer->buffer, bytes, (off_t)step->first * UNIT);
    must(written == (ssize_t)bytes, writer, number, kinds[step->kind]);
    must(!(number % 2 ? fsync(file) : fdatasync(file)), writer, number, "fsync");
}

// `again` if an outage may have come when it was done already.
static void perform(struct writer *writer, const struct step *step, uint32_t number, int again) {
    char name[16], other[16];
    int directory = writer->directory, flags = O_RDWR | (step->direct ? O_DIRECT : 0);
    name_slot(name, step->slot);
    name_slot(other, step->other);
    if (step->kind == RENAME || step->kind == UNLINK) {
        int result = step->kind == RENAME ? renameat(directory, name, directory, other)
                                          : unlinkat(directory, name, 0);
        must(!result || (again && errno == ENOENT), writer, number, kinds[step->kind]);
    } else {
        if (step->kind == REPLACE) flags |= O_CREAT | O_TRUNC;
        int file = openat(directory, step->kind == REPLACE ? "new" : name, flags, 0644);
        must(file >= 0, writer, number, "open");
        if (step->kind == TRUNCATE) {
            must(!ftruncate(file, (off_t)step->units * UNIT), writer, number, "truncate");
            must(!fsync(file), writer, number, "fsync");
        } else {
            write_units(writer, file, step, number);
        }
        must(!close(file), writer, number, "close");
        if (step->kind != REPLACE) return;
        must(!renameat(directory, "new", directory, name), writer, number, "rename");
    }
    must(!fsync(directory), writer, number, "fsync of the directory");
}

// The number of the last step that a writer may have begun, or 0; two places take turns.
static uint32_t last_begun(const struct writer *writer) {
    uint32_t last = 0;
    for (unsigned place = 0; place < 2; place++) {
        if (pread(writer->journal, writer->buffer, DIRECT_BYTES, place * DIRECT_BYTES) != DIRECT_BYTES)
            continue;
        uint32_t number = *(uint64_t *)writer->buffer >> 32;
        if (number > last && is_unit(writer->buffer, writer->number, number, 0)) last = number;
    }
    return last;
}

static void begin_step(struct writer *writer, uint32_t number) {
    memset(writer->buffer, 0, DIRECT_BYTES);
    fill_unit(writer->buffer, writer->number, number, 0);
    ssize_t written = pwrite(writer->journal, writer->buffer, DIRECT_BYTES, number % 2 * DIRECT_BYTES);
    must(written == DIRECT_BYTES && !fdatasync(writer->journal), writer, number, "journal");
}

// The steps that are done whatever the console said: the writer goes on when a step is durable.
static uint32_t last_done(const struct writer *writer, uint32_t begun) {
    uint32_t said = done[writer->number];
    return begun > said + 1 ? begun - 1 : said;
}

static void foretell(struct writer *writer, uint32_t last) {
    for (uint32_t number = 1; number <= last; number++) {
        struct step step = plan(writer, number);
        apply(writer->files, &step, number);
    }
}

static struct writer *open_writer(unsigned number, int make) {
    char name[512];
    struct writer *writer = calloc(1, sizeof *writer);
    require(writer != NULL, "memory");
    writer->number = number;
    writer->buffer = aligned(UNITS_MAX * UNIT);
    snprintf(name, sizeof name, "%s/writer%u", top, number);
    require(!make || !mkdir(name, 0755) || errno == EEXIST, name);
    writer->directory = open(name, O_RDONLY | O_DIRECTORY);
    require(writer->directory >= 0, name);
    int flags = O_RDWR | (make ? O_CREAT : 0) | (number % 2 ? O_DIRECT | O_DSYNC : 0);
    writer->journal = openat(writer->directory, "journal", flags, 0644);
    require(writer->journal >= 0, "journal");
    if (make) require(!fsync(writer->journal) && !fsync(writer->directory), "fsync");
    return writer;
}

static void *write_steps(void *argument) {
    struct writer *writer = argument;
    uint32_t first = last_done(writer, last_begun(writer)) + 1;
    foretell(writer, first - 1);
    for (uint32_t number = first;; number++) {
        struct step step = plan(writer, number);
        begin_step(writer, number);
        perform(writer, &step, number, number == first);
        apply(writer->files, &step, number);
        // One call, so that lines are whole.
        dprintf(STDOUT_FILENO, "DONE %u %u\n", writer->number, number);
    }
    return NULL;
}

static int open_noise(unsigned noise, int flags) {
    char name[512];
    snprintf(name, sizeof name, "%s/noise%u", top, noise);
    return open(name, O_RDWR | flags, 0644);
}

// The first goes round through the page cache, the second is direct and anywhere.
static void *write_noise(void *argument) {
    unsigned noise = (uintptr_t)argument;
    int file = open_noise(noise, O_CREAT | (noise ? O_DIRECT : 0));
    require(file >= 0, "noise");
    unsigned char *buffer = aligned(NOISE_UNITS * UNIT);
    for (uint32_t step = 1;; step++) {
        uint64_t random = mix(seed + noise + step), blocks = NOISE_MIB * MIB / DIRECT_BYTES;
        unsigned units = (1 + (random >> 8) % (NOISE_UNITS / DIRECT_UNITS)) * DIRECT_UNITS;
        uint64_t block = (noise ? random >> 16 : (uint64_t)step * 16) % (blocks - NOISE_UNITS / DIRECT_UNITS);
        uint64_t first = block * DIRECT_UNITS;
        for (unsigned i = 0; i < units; i++) fill_unit(buffer + i * UNIT, WRITERS + noise, step, first + i);
        ssize_t written = pwrite(file, buffer, units * UNIT, first * UNIT);
        require(written == (ssize_t)(units * UNIT), "write of noise");
        usleep(20000);
    }
    return NULL;
}

// Names that come, move and go, and are never fsynced.
static void *change_names(void *argument) {
    char old[512], new[512];
    for (uint32_t step = 1;; step++) {
        snprintf(old, sizeof old, "%s/name%u", top, (unsigned)(mix(seed + step) % 64));
        snprintf(new, sizeof new, "%s/name%u", top, (unsigned)(mix(seed + step + 1) % 64));
        FILE *file = fopen(old, "a");
        require(file && fprintf(file, "%u\n", step) > 0 && !fclose(file), old);
        if (step % 3) require(!rename(old, new), new);
        else require(!unlink(old), old);
        usleep(5000);
    }
    return argument;
}

static void load(void) {
    pthread_t thread;
    struct writer *writers[WRITERS];
    for (unsigned i = 0; i < WRITERS; i++) writers[i] = open_writer(i, 1);
    int directory = open(top, O_RDONLY | O_DIRECTORY);
    require(directory >= 0 && !fsync(directory), top);
    for (unsigned i = 0; i < WRITERS; i++)
        require(!pthread_create(&thread, NULL, write_steps, writers[i]), "pthread_create");
    for (uintptr_t i = 0; i < NOISES; i++)
        require(!pthread_create(&thread, NULL, write_noise, (void *)i), "pthread_create");
    change_names(NULL);
}

// The bytes of the file in a slot, in the writer's buffer; -1 if there is none.
static off_t read_slot(struct writer *writer, unsigned slot) {
    char name[16];
    struct stat status;
    name_slot(name, slot);
    int file = openat(writer->directory, name, O_RDONLY);
    if (file < 0) return -1;
    require(!fstat(file, &status), name);
    off_t length = status.st_size;
    if (length <= UNITS_MAX * UNIT && pread(file, writer->buffer, length, 0) != length)
        fault("file%" PRIu64 " cannot be read, %" PRIu64 " bytes", writer->number, slot, length, "");
    close(file);
    return length;
}

static int is_file(const struct writer *writer, off_t length, const struct file *file) {
    if (length < 0 || !file->there) return length < 0 && !file->there;
    if (length != (off_t)file->units * UNIT) return 0;
    for (unsigned i = 0; i < file->units; i++)
        if (!is_unit(writer->buffer + i * UNIT, writer->number, file->step[i], i)) return 0;
    return 1;
}

// Half-way between two states of a file that is changed in place.
static int is_between(const struct writer *writer, off_t length, const struct file *old,
                      const struct file *new) {
    unsigned most = old->units > new->units ? old->units : new->units;
    unsigned least = at_most(old->units, new->units);
    // Longer already, and nothing written there yet. Or still as long, and the rest of its new last
    // block was zeroed: ext4 does that before its journal says how long the file is.
    unsigned blocks = (least + BLOCK_UNITS - 1) / BLOCK_UNITS;
    unsigned zeroed = old->units < new->units ? most : blocks * BLOCK_UNITS;
    if (length < (off_t)least * UNIT || length > (off_t)most * UNIT) return 0;
    for (unsigned i = 0; i < length / UNIT; i++) {
        const unsigned char *unit = writer->buffer + i * UNIT;
        int right = i < old->units && is_unit(unit, writer->number, old->step[i], i);
        right |= i < new->units && is_unit(unit, writer->number, new->step[i], i);
        right |= i >= least && i < zeroed && is_zero(unit);
        if (!right) return 0;
    }
    return 1;
}

static void describe(const struct writer *writer, unsigned slot, off_t length, const struct file *file) {
    char text[120] = "";
    for (unsigned i = 0; file->there && length >= 0 && i < file->units && i < length / UNIT; i++) {
        const unsigned char *unit = writer->buffer + i * UNIT;
        if (is_unit(unit, writer->number, file->step[i], i)) continue;
        snprintf(text, sizeof text, "; unit %u is not of step %u, it begins with %016" PRIx64, i,
                 file->step[i], *(const uint64_t *)unit);
        break;
    }
    fault("file%" PRIu64 " has %" PRId64 " bytes", writer->number, slot, (uint64_t)length, text);
    if (faults <= SHOWN)
        printf("OUTAGE   expected: %s, %u bytes\n", file->there ? "there" : "not there", file->units * UNIT);
}

// Files that no step has made.
static void check_names(const struct writer *writer, int may_have_new) {
    DIR *directory = fdopendir(dup(writer->directory));
    require(directory != NULL, "directory");
    for (struct dirent *entry; (entry = readdir(directory));) {
        const char *name = entry->d_name;
        int known = name[0] == '.' || !strncmp(name, "file", 4) || !strcmp(name, "journal");
        if (!known && !(may_have_new && !strcmp(name, "new")))
            fault("a name that must not be there: ", writer->number, 0, 0, name);
    }
    closedir(directory);
}

static unsigned check_writer(unsigned number) {
    struct writer *writer = open_writer(number, 0);
    uint32_t begun = last_begun(writer), last = last_done(writer, begun);
    unsigned files = 0;
    if (begun < done[number])
        fault("%" PRIu64 " steps were done, and the journal says %" PRIu64, number, done[number], begun, "");
    foretell(writer, last);
    struct file *after = malloc(sizeof writer->files);
    require(after != NULL, "memory");
    memcpy(after, writer->files, sizeof writer->files);
    struct step step = plan(writer, last + 1);
    int half_way = begun > last;
    if (half_way) apply(after, &step, last + 1);
    int in_place = half_way && (step.kind == OVERWRITE || step.kind == APPEND || step.kind == TRUNCATE);
    unsigned as_before = 0, as_after = 0, touched = 0;
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        off_t length = read_slot(writer, slot);
        const struct file *file = &writer->files[slot];
        int before = is_file(writer, length, file), later = is_file(writer, length, &after[slot]);
        files += length >= 0;
        if (half_way && (slot == step.slot || (step.kind == RENAME && slot == step.other))) {
            touched++;
            as_before += before;
            as_after += later;
            if (in_place && !before && !later && is_between(writer, length, file, &after[slot]))
                as_after++;
            else if (!before && !later)
                describe(writer, slot, length, file);
        } else if (!before) {
            describe(writer, slot, length, file);
        }
    }
    if (as_before != touched && as_after != touched)
        fault("half of step %" PRIu64 " was done, of %" PRIu64 " files: ", number, last + 1, touched,
              kinds[step.kind]);
    check_names(writer, half_way && step.kind == REPLACE);
    printf("OUTAGE writer %u: %" PRIu64 " steps said, %u done, %s, %u files\n", number, done[number], last,
           half_way ? kinds[step.kind] : "none begun", files);
    return files;
}

static uint64_t check_noise(unsigned noise) {
    int file = open_noise(noise, 0);
    // Nothing of it was ever fsynced.
    if (file < 0) return 0;
    unsigned char *buffer = aligned(NOISE_UNITS * UNIT);
    uint64_t index = 0;
    ssize_t length;
    while ((length = read(file, buffer, NOISE_UNITS * UNIT)) > 0) {
        for (unsigned i = 0; i < length / UNIT; i++, index++) {
            const unsigned char *unit = buffer + i * UNIT;
            uint32_t step = *(const uint64_t *)unit >> 32;
            if (!is_zero(unit) && !is_unit(unit, WRITERS + noise, step, index))
                fault("unit %" PRIu64 " of the noise is of nobody, it begins with %016" PRIx64,
                      WRITERS + noise, index, *(const uint64_t *)unit, "");
        }
    }
    if (length < 0) fault("noise%" PRIu64 ": ", WRITERS + noise, noise, 0, strerror(errno));
    close(file);
    return index;
}

static void check(void) {
    unsigned files = 0;
    uint64_t units = 0;
    for (unsigned i = 0; i < WRITERS; i++) files += check_writer(i);
    for (unsigned i = 0; i < NOISES; i++) units += check_noise(i);
    printf("OUTAGE %u files, %" PRIu64 " units of noise, %" PRIu64 " faults\n", files, units, faults);
}

int main(int count, char **words) {
    if (count != 5) {
        fprintf(stderr, "usage: outage load|check DIRECTORY SEED DONE,DONE,..\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    top = words[2];
    seed = strtoull(words[3], NULL, 0);
    char *next = words[4];
    for (unsigned i = 0; i < WRITERS; i++) {
        done[i] = strtoull(next, &next, 10);
        require(*next == (i + 1 < WRITERS ? ',' : 0), "DONE");
        next++;
    }
    if (!strcmp(words[1], "load")) load();
    else check();
    return faults ? 1 : 0;
}
