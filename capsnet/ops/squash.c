/* The squash and its gradient in one pass over memory each: `capsnet/ops/squash.py` compiles and calls this.

Compiled for one REAL and D; numbers in memory are REALs or, with BF16, bf16. A tensor [sizes[0], sizes[1], sizes[2], D]
has its own strides along the first three axes, and the D numbers of a capsule are contiguous. */

#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#define PADDED (D <= 8 ? 8 : D <= 16 ? 16 : D <= 32 ? 32 : 64) /* numbers that are converted at once */

#ifdef BF16
typedef unsigned short number;

typedef unsigned short halves __attribute__((vector_size(2 * PADDED)));
typedef unsigned bits __attribute__((vector_size(4 * PADDED)));

INLINE void load(const number *from, REAL *to) {
    halves given = {0};
    memcpy(&given, from, D * sizeof(number));
    bits all = __builtin_convertvector(given, bits) << 16;
    memcpy(to, &all, D * sizeof(REAL));
}

/* Round to the nearest bf16, ties to even; NaN stays NaN. */
INLINE void store(const REAL *from, number *to) {
    bits all = {0};
    memcpy(&all, from, D * sizeof(REAL));
    bits nan = (bits)((all & 0x7fffffff) > 0x7f800000), near = all + 0x7fff + (all >> 16 & 1);
    halves given = __builtin_convertvector((nan & (all | 0x400000) | (~nan & near)) >> 16, halves);
    memcpy(to, &given, D * sizeof(number));
}
#else
typedef REAL number;

INLINE void load(const number *restrict from, REAL *restrict to) { memcpy(to, from, D * sizeof(REAL)); }

INLINE void store(const REAL *restrict from, number *restrict to) { memcpy(to, from, D * sizeof(REAL)); }
#endif

#define ROOT(a) ((REAL)(sizeof(REAL) == 4 ? __builtin_sqrtf(a) : __builtin_sqrt(a)))

INLINE const number *row(const number *from, const long *strides, long b, long n, long m) {
    return from + b * strides[0] + n * strides[1] + m * strides[2];
}

/* v = |s| / (1 + |s|²) s */
void squash(const long *sizes, long workers, const number *s, const long *s_strides, number *v,
            const long *v_strides) {
#pragma omp parallel for num_threads(workers)
    for (long b = 0; b < sizes[0]; b++)
        for (long n = 0; n < sizes[1]; n++)
            for (long m = 0; m < sizes[2]; m++) {
                REAL x[D], square = 0;
                load(row(s, s_strides, b, n, m), x);
#pragma omp simd reduction(+ : square)
                for (int d = 0; d < D; d++) square += x[d] * x[d];
                REAL factor = ROOT(square) / (1 + square);
                for (int d = 0; d < D; d++) x[d] *= factor;
                store(x, (number *)row(v, v_strides, b, n, m));
            }
}

/* grad_s = |s| / (1 + |s|²) grad + (s · grad) / |s| (1 - |s|²) / (1 + |s|²)² s, with grad for v; zero where s is zero */
void squash_gradient(const long *sizes, long workers, const number *s, const long *s_strides, const number *grad,
                     const long *grad_strides, number *grad_s, const long *grad_s_strides) {
#pragma omp parallel for num_threads(workers)
    for (long b = 0; b < sizes[0]; b++)
        for (long n = 0; n < sizes[1]; n++)
            for (long m = 0; m < sizes[2]; m++) {
                REAL x[D], g[D], square = 0, along = 0;
                load(row(s, s_strides, b, n, m), x);
                load(row(grad, grad_strides, b, n, m), g);
#pragma omp simd reduction(+ : square, along)
                for (int d = 0; d < D; d++) square += x[d] * x[d], along += x[d] * g[d];
                REAL length = ROOT(square), shrink = 1 / (1 + square);
                REAL lengthwise = length > 0 ? along / length * (1 - square) * shrink * shrink : 0;
                for (int d = 0; d < D; d++) x[d] = g[d] * (length * shrink) + x[d] * lengthwise;
                store(x, (number *)row(grad_s, grad_s_strides, b, n, m));
            }
}
