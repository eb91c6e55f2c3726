/* A batch of images to Fourier coefficients and back, by axis: `capsnet/ops/fourier.py` compiles and calls this.

An image is split into stride · stride phases. The coefficients of a phase's grid of places take three passes: over its
columns, over its rows, and over a few products of the two waves for each coefficient. A vec holds LANES channels, so
every operation is on LANES channels at once. All layouts are contiguous, with floats or bf16 as `shape` says:

images         [images, height, width, channels]; places of a phase beyond the image count as zero
coefficients   [coefficients, images, stride · stride, channels]
across         [waves, places] of the columns, down the same of the rows; transposed in `synthesize`
mix            rows of products of waves in compressed form: entries starts[m] to starts[m + 1] of indices and values;
               `synthesize` has the transposed rows
scratch        [workers, coefficients, stride · stride, channels] of floats

The workers are OpenMP's threads, which are PyTorch's; each has its own part of the images. */

#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES ((int)(BYTES / sizeof(float)))
#define MOST 16 /* places along one axis */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(BYTES)));
typedef unsigned bits __attribute__((vector_size(BYTES)));
typedef unsigned short halves __attribute__((vector_size(BYTES / 2)));

typedef struct {
    long images, height, width, channels, stride, down, across, rows, columns, coefficients, workers;
    long bf16_images, bf16_coefficients;
} shape; /* down and across are numbers of waves, rows and columns those of a phase's places */

typedef struct {
    const int *starts, *indices;
    const float *values;
} mix;

int lanes(void) { return LANES; }

INLINE vec load(const void *from, long at, long bf16) {
    if (!bf16) return *(const vec *)((const float *)from + at);
    return (vec)(__builtin_convertvector(*(const halves *)((const unsigned short *)from + at), bits) << 16);
}

/* Round to the nearest bf16, ties to even; NaN stays NaN. */
INLINE void store(vec a, void *to, long at, long bf16) {
    if (!bf16) {
        *(vec *)((float *)to + at) = a;
        return;
    }
    bits all = (bits)a, nan = (bits)(a != a), near = all + 0x7fff + (all >> 16 & 1);
    *(halves *)((unsigned short *)to + at) =
        __builtin_convertvector((nan & (all | 0x400000) | (~nan & near)) >> 16, halves);
}

/* to[r] = sum over n of matrix[r, n] from[n] for a few rows r; from_step and to_step are strides in vecs. */
INLINE void multiply_rows(int rows, long inner, const float *restrict matrix, long width, const vec *restrict from,
                          long from_step, vec *restrict to, long to_step) {
    vec sums[4] = {0};
    for (long n = 0; n < inner; n++) {
        vec a = from[n * from_step];
        for (int r = 0; r < rows; r++) sums[r] += matrix[r * width + n] * a;
    }
    for (int r = 0; r < rows; r++) to[r * to_step] = sums[r];
}

INLINE void multiply(long rows, long inner, const float *restrict matrix, long width, const vec *restrict from,
                     long from_step, vec *restrict to, long to_step) {
    long r = 0;
    for (; r + 4 <= rows; r += 4)
        multiply_rows(4, inner, matrix + r * width, width, from, from_step, to + r * to_step, to_step);
    for (; r + 2 <= rows; r += 2)
        multiply_rows(2, inner, matrix + r * width, width, from, from_step, to + r * to_step, to_step);
    if (r < rows) multiply_rows(1, inner, matrix + r * width, width, from, from_step, to + r * to_step, to_step);
}

/* Row m of a mix times `from`. */
INLINE vec mixed(const mix *x, long m, const vec *restrict from) {
    vec sum = {0};
    for (int n = x->starts[m]; n < x->starts[m + 1]; n++) sum += x->values[n] * from[x->indices[n]];
    return sum;
}

/* How many of a phase's places lie within an image of this length. */
INLINE long inside(long length, long phase, long stride, long places) {
    long there = (length - phase + stride - 1) / stride;
    return there < 0 ? 0 : there < places ? there : places;
}

INLINE void analyze_part(const shape *s, long worker, const void *images, void *coefficients, const float *down,
                         const float *across, const mix *x, char *tile, long from_bf16, long to_bf16) {
    long phases = s->stride * s->stride, size = to_bf16 ? 2 : 4, line = phases * s->channels * size;
    for (long image = s->images * worker / s->workers; image < s->images * (worker + 1) / s->workers; image++) {
        for (long phase = 0; phase < phases; phase++) {
            long first_row = phase / s->stride, first_column = phase % s->stride;
            long rows = inside(s->height, first_row, s->stride, s->rows);
            long columns = inside(s->width, first_column, s->stride, s->columns);
            for (long c = 0; c < s->channels; c += LANES) {
                vec places[MOST], half[MOST * MOST], waves[MOST * MOST];
                for (long y = 0; y < rows; y++) {
                    long row = (image * s->height + y * s->stride + first_row) * s->width + first_column;
                    for (long z = 0; z < columns; z++)
                        places[z] = load(images, (row + z * s->stride) * s->channels + c, from_bf16);
                    multiply(s->across, columns, across, s->columns, places, 1, half + y * s->across, 1);
                }
                for (long q = 0; q < s->across; q++)
                    multiply(s->down, rows, down, s->rows, half + q, s->across, waves + q, s->across);
                for (long m = 0; m < s->coefficients; m++)
                    store(mixed(x, m, waves), tile, (m * phases + phase) * s->channels + c, to_bf16);
            }
        }
        for (long m = 0; m < s->coefficients; m++)
            memcpy((char *)coefficients + (m * s->images + image) * line, tile + m * line, line);
    }
}

INLINE void synthesize_part(const shape *s, long worker, const void *coefficients, void *images, const float *down,
                            const float *across, const mix *x, char *tile, long from_bf16, long to_bf16) {
    long phases = s->stride * s->stride, line = phases * s->channels * (from_bf16 ? 2 : 4);
    for (long image = s->images * worker / s->workers; image < s->images * (worker + 1) / s->workers; image++) {
        for (long m = 0; m < s->coefficients; m++)
            memcpy(tile + m * line, (const char *)coefficients + (m * s->images + image) * line, line);
        for (long phase = 0; phase < phases; phase++) {
            long first_row = phase / s->stride, first_column = phase % s->stride;
            long rows = inside(s->height, first_row, s->stride, s->rows);
            long columns = inside(s->width, first_column, s->stride, s->columns);
            for (long c = 0; c < s->channels; c += LANES) {
                vec places[MOST], half[MOST * MOST], waves[MOST * MOST], given[2 * MOST * MOST];
                for (long m = 0; m < s->coefficients; m++)
                    given[m] = load(tile, (m * phases + phase) * s->channels + c, from_bf16);
                for (long q = 0; q < s->down * s->across; q++) waves[q] = mixed(x, q, given);
                for (long q = 0; q < s->across; q++)
                    multiply(rows, s->down, down, s->down, waves + q, s->across, half + q, s->across);
                for (long y = 0; y < rows; y++) {
                    long row = (image * s->height + y * s->stride + first_row) * s->width + first_column;
                    multiply(columns, s->across, across, s->across, half + y * s->across, 1, places, 1);
                    for (long z = 0; z < columns; z++)
                        store(places[z], images, (row + z * s->stride) * s->channels + c, to_bf16);
                }
            }
        }
    }
}

void analyze(const shape *s, const void *images, void *coefficients, const float *down, const float *across,
             const int *starts, const int *indices, const float *values, char *scratch) {
    mix x = {starts, indices, values};
    long room = s->coefficients * s->channels * s->stride * s->stride * 4;
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++) {
        char *tile = scratch + worker * room;
        if (s->bf16_images)
            analyze_part(s, worker, images, coefficients, down, across, &x, tile, 1, 1);
        else if (s->bf16_coefficients)
            analyze_part(s, worker, images, coefficients, down, across, &x, tile, 0, 1);
        else
            analyze_part(s, worker, images, coefficients, down, across, &x, tile, 0, 0);
    }
}

void synthesize(const shape *s, const void *coefficients, void *images, const float *down, const float *across,
                const int *starts, const int *indices, const float *values, char *scratch) {
    mix x = {starts, indices, values};
    long room = s->coefficients * s->channels * s->stride * s->stride * 4;
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++) {
        char *tile = scratch + worker * room;
        if (s->bf16_images)
            synthesize_part(s, worker, coefficients, images, down, across, &x, tile, 1, 1);
        else if (s->bf16_coefficients)
            synthesize_part(s, worker, coefficients, images, down, across, &x, tile, 1, 0);
        else
            synthesize_part(s, worker, coefficients, images, down, across, &x, tile, 0, 0);
    }
}
