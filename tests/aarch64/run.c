/* Runs a program of launches: read from standard input as 64-bit words, its outputs written to standard output. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef void (*kernel)(void **, int64_t *, int64_t, int64_t, void *);
extern kernel kernels[];

static void take(void *to, size_t size) {
    if (fread(to, 1, size, stdin) != size) {
        fputs("the program ends early\n", stderr);
        exit(2);
    }
}

static int64_t word(void) {
    int64_t value;
    take(&value, 8);
    return value;
}

int main(void) {
    int64_t num_buffers = word();
    char **buffers = calloc(num_buffers + 1, sizeof *buffers);
    int64_t *sizes = calloc(num_buffers + 1, 8);
    for (int64_t i = 0; i < num_buffers; i++) {
        sizes[i] = word();
        int64_t has_content = word();
        buffers[i] = aligned_alloc(64, (sizes[i] + 191) / 64 * 64);
        if (has_content) take(buffers[i], sizes[i]);
    }
    char *scratch = aligned_alloc(64, (word() + 127) / 64 * 64);
    int64_t num_launches = word();
    for (int64_t i = 0; i < num_launches; i++) {
        kernel function = kernels[word()];
        int64_t extent = word(), chunk = word(), num_pointers = word();
        void *pointers[64];
        for (int64_t p = 0; p < num_pointers; p++) {
            int64_t buffer = word();
            pointers[p] = buffers[buffer] + word();
        }
        int64_t num_sizes = word();
        int64_t *numbers = calloc(num_sizes + 1, 8);
        take(numbers, num_sizes * 8);
        for (int64_t unit = 0; unit < extent; unit += chunk) {
            int64_t end = unit + chunk < extent ? unit + chunk : extent;
            function(pointers, numbers, unit, end, scratch);
        }
        free(numbers);
    }
    int64_t num_outputs = word();
    for (int64_t i = 0; i < num_outputs; i++) {
        int64_t buffer = word();
        fwrite(buffers[buffer], 1, sizes[buffer], stdout);
    }
    return 0;
}
