/* The passes of routing with the votes in registers: `capsnet/ops/native.py` compiles and calls this.

Compiled for one REAL, D and E. A vec holds one number of each of LANES images. Every operation is on LANES images at
once, and W_ij, which is the same for all images, is a scalar. With PAIRS, children and weight are in bf16, and D and E
are even: if the CPU has an instruction that adds the products of two pairs of bf16 to a float, a word is such a pair.
Otherwise a word is one REAL. `words` holds one word of each of LANES images. All layouts are contiguous:

x, grad_x                [blocks, i, D / PER] of words
w                        [i, j, D / PER, E] of word, with two neighbours along d in a word if PER is 2
transposed               [i, j, D, E / PER] of word, with two neighbours along e: the weight in its own layout
grad_w                   [i, j, D, E] of REAL
parent_sum, grad, sum    [blocks, j, E] of vec; parent_sum and grad are [t, blocks, j, E] in `gradients`
grad_uniform             [blocks, j, E] of vec, or NULL
prior, grad_prior        [i, j] of REAL, or NULL; grad_x and grad_w may be NULL too
scratch                  `scratch_size` vecs

The number of blocks is a multiple of PER. The workers are OpenMP's threads, which are PyTorch's. Each has its own part
of the children, its own scratch and its own sum [workers, blocks, j, E], so that no two write to the same memory. */

#if defined(PAIRS) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#define PER 2 /* numbers in a word */
#else
#define PER 1
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES ((int)(BYTES / sizeof(REAL)))
#define TILE 16  /* children whose matrices stay in the cache during a loop over the blocks */
#define FEW 2    /* children that share one load of a parent's vectors */
#define GROUP 8  /* blocks whose products with a child are summed in registers: a multiple of PER */
#define DOWN (E % LANES && LANES >= 4 ? 4 : 1) /* DOWN dimensions of a child by ACROSS of a parent fill a vec */
#define ACROSS (LANES / DOWN)
#define INLINE static inline __attribute__((always_inline))

typedef REAL vec __attribute__((vector_size(BYTES)));
#ifdef SINGLE
typedef int bits __attribute__((vector_size(BYTES)));
#else
typedef long long bits __attribute__((vector_size(BYTES)));
#endif

#if PER == 2
typedef unsigned word;
typedef bits words;

/* sum + a b, for pairs the sum of both products */
INLINE vec multiply_add(words a, words b, vec sum) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

INLINE words broadcast(word a) { return (words)_mm512_set1_epi32(a); }

/* Round the numbers of PER vecs to bf16 and pack them into words. */
INLINE words join(const vec *parts) {
    static const short turn[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i apart = (__m512i)_mm512_cvtne2ps_pbh((__m512)parts[1], (__m512)parts[0]);
    return (words)_mm512_permutexvar_epi16(_mm512_loadu_si512(turn), apart);
}
#else
typedef REAL word;
typedef vec words;

INLINE vec multiply_add(words a, words b, vec sum) { return sum + a * b; }

INLINE words broadcast(word a) { return a - (words){0}; } /* -, since + would turn -0 into 0 */

INLINE words join(const vec *parts) { return parts[0]; }
#endif

typedef vec unaligned __attribute__((aligned(sizeof(REAL))));

typedef struct {
    long children, parents, blocks, none_of_the_above, workers;
} shape;

/* The first child of a worker. */
static long begin(const shape *s, long worker) { return s->children * worker / s->workers; }

int lanes(void) { return LANES; }

int per_word(void) { return PER; }

INLINE long smaller(long a, long b) { return a < b ? a : b; }

/* Vecs for the votes of one child, its couplings and their gradients; or, for FEW children and a group of blocks, for
the couplings and logit gradients of each iteration, the gradients for x and for the votes, and x by images. */
long scratch_size(const shape *s, long times) {
    long coefs = FEW * GROUP * 2 * times * s->parents, sums = FEW * GROUP * (E + 2 * D), vote = s->parents * (E + 2);
    return coefs + sums + vote;
}

/* The larger of a and b; b where one of them is NaN. */
INLINE vec larger(vec a, vec b) {
    vec most;
    for (int l = 0; l < LANES; l++) most[l] = a[l] > b[l] ? a[l] : b[l];
    return most;
}

#ifdef SINGLE
/* e^a of a <= 0 or NaN, accurate to all but the last digit of a float: 2^n e^r, with Cephes' polynomial for
|r| <= ln 2 / 2. */
INLINE vec exponential(vec a) {
    a = larger((vec){0} - 87, a);
    bits n = __builtin_convertvector(a * (REAL)1.44269504088896341 - (REAL)0.5, bits);
    vec m = __builtin_convertvector(n, vec);
    vec r = a - m * (REAL)0.693359375 + m * (REAL)2.12194440e-4;
    vec p = (vec){0} + (REAL)1.9875691500e-4;
    p = p * r + (REAL)1.3981999507e-3;
    p = p * r + (REAL)8.3334519073e-3;
    p = p * r + (REAL)4.1665795894e-2;
    p = p * r + (REAL)1.6666665459e-1;
    p = p * r + (REAL)5.0000001201e-1;
    p = p * r * r + r + (REAL)1;
    return p * (vec)((n + 127) << 23);
}
#else
double exp(double);
INLINE vec exponential(vec a) {
    for (int l = 0; l < LANES; l++) a[l] = exp(a[l]);
    return a;
}
#endif

/* vote[e] += sum over d of w[d, e] x[d] */
INLINE void add_vote(const words *restrict x, const word *restrict w, vec *restrict vote) {
    for (int d = 0; d < D / PER; d++)
        for (int e = 0; e < E; e++) vote[e] = multiply_add(broadcast(w[d * E + e]), x[d], vote[e]);
}

/* to[e] += scale from[e] */
INLINE void add(vec scale, const vec *restrict from, vec *restrict to) {
    for (int e = 0; e < E; e++) to[e] += scale * from[e];
}

INLINE vec dot(const vec *restrict a, const vec *restrict b) {
    vec part[4] = {0};
    for (int e = 0; e < E; e++) part[e % 4] += a[e] * b[e];
    return (part[0] + part[1]) + (part[2] + part[3]);
}

/* Add the prior to the logits and replace them by their softmax over the parents, with a logit of 0 for none of the
above if asked for. */
static inline void couple(const shape *s, const REAL *restrict prior, vec *restrict logits) {
    long parents = s->parents;
    if (prior)
        for (long j = 0; j < parents; j++) logits[j] += prior[j];
    vec most = s->none_of_the_above ? (vec){0} : logits[0];
    for (long j = 0; j < parents; j++) most = larger(most, logits[j]);
    vec total = s->none_of_the_above ? exponential(-most) : (vec){0};
    for (long j = 0; j < parents; j++) total += logits[j] = exponential(logits[j] - most);
    vec scale = 1 / total;
    for (long j = 0; j < parents; j++) logits[j] *= scale;
}

/* Replace the gradients a of the couplings c by those of the logits: c_j (a_j - sum over k of c_k a_k). */
static inline void softmax_backward(long parents, const vec *restrict couplings, vec *restrict grad_couplings) {
    vec mean = {0};
    for (long j = 0; j < parents; j++) mean += couplings[j] * grad_couplings[j];
    for (long j = 0; j < parents; j++) grad_couplings[j] = couplings[j] * (grad_couplings[j] - mean);
}

/* The sum of a worker's votes. */
static void uniform_sum_part(const shape *s, long worker, const words *x, const word *w, vec *sum) {
    long parents = s->parents, last = begin(s, worker + 1);
    for (long tile = begin(s, worker); tile < last; tile += TILE) {
        long end = smaller(tile + TILE, last);
        for (long k = 0; k < s->blocks; k++)
            for (long j = 0; j < parents; j++) {
                vec total[E], *to = sum + (k * parents + j) * E;
                for (int e = 0; e < E; e++) total[e] = to[e];
                for (long i = tile; i < end; i++)
                    add_vote(x + (k * s->children + i) * D / PER, w + (i * parents + j) * D * E / PER, total);
                for (int e = 0; e < E; e++) to[e] = total[e];
            }
    }
}

void uniform_sum(const shape *s, const words *x, const word *w, vec *sums) {
    long size = s->blocks * s->parents * E;
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++)
        uniform_sum_part(s, worker, x, w, sums + worker * size);
}

/* The sum of a worker's votes, weighted by their couplings or, with grad, by the gradients of the logits. */
static void weighted_sum_part(const shape *s, long worker, const words *x, const word *w, const vec *parent_sum,
                              const REAL *prior, const vec *grad, vec *sum, vec *scratch) {
    long parents = s->parents, size = parents * E, last = begin(s, worker + 1);
    vec *votes = scratch, *couplings = votes + size, *grad_couplings = couplings + parents;
    for (long tile = begin(s, worker); tile < last; tile += TILE) {
        long end = smaller(tile + TILE, last);
        for (long k = 0; k < s->blocks; k++)
            for (long i = tile; i < end; i++) {
                const words *child = x + (k * s->children + i) * D / PER;
                const vec *v = parent_sum + k * size, *g = grad + k * size;
                for (long j = 0; j < parents; j++) {
                    vec vote[E] = {0};
                    add_vote(child, w + (i * parents + j) * D * E / PER, vote);
                    couplings[j] = dot(vote, v + j * E);
                    if (grad) grad_couplings[j] = dot(vote, g + j * E);
                    for (int e = 0; e < E; e++) votes[j * E + e] = vote[e];
                }
                couple(s, prior ? prior + i * parents : 0, couplings);
                if (grad) softmax_backward(parents, couplings, grad_couplings);
                for (long j = 0; j < parents; j++)
                    add(grad ? grad_couplings[j] : couplings[j], votes + j * E, sum + k * size + j * E);
            }
    }
}

void weighted_sum(const shape *s, const words *x, const word *w, const vec *parent_sum, const REAL *prior,
                  const vec *grad, vec *sums, vec *scratch) {
    long size = s->blocks * s->parents * E, room = scratch_size(s, 1);
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++)
        weighted_sum_part(s, worker, x, w, parent_sum, prior, grad, sums + worker * size, scratch + worker * room);
}

/* Halve the number of rows. Each lane of a row gets the lane at distance `apart` added to it. The two lanes then hold
the same sum, so that one of them can take the sum of another row, the one `apart` rows below. */
INLINE void fold(vec *rows, int apart) {
    for (int n = 0; n < apart; n++) {
        vec a = rows[n], b = rows[n + apart];
#ifdef __clang__
        for (int l = 0; l < LANES; l++) rows[n][l] = l & apart ? b[l] + b[l ^ apart] : a[l] + a[l ^ apart];
#else
        bits here, there;
        for (int l = 0; l < LANES; l++) here[l] = l + (l & apart ? LANES : 0), there[l] = here[l] ^ apart;
        rows[n] = __builtin_shuffle(a, b, here) + __builtin_shuffle(a, b, there);
#endif
    }
}

/* Lane l of the result is the sum over the lanes of rows[l]; overwrites rows. */
INLINE vec over_lanes(vec *rows) {
    if (LANES > 8) fold(rows, 8);
    if (LANES > 4) fold(rows, 4);
    if (LANES > 2) fold(rows, 2);
    fold(rows, 1);
    return rows[0];
}

/* grad_w[d, e] += sum over n and over the images of x[n, d] grad[n, e]. A tile of LANES such sums is computed in
registers, for each lane apart, and then summed over the lanes. */
INLINE void multiply(int many, const words *x, const words *grad, REAL *grad_w) {
    for (int d = 0; d < D; d += DOWN)
        for (int e = 0; e < E; e += ACROSS) {
            vec total[DOWN * ACROSS] = {0};
            for (int n = 0; n < many; n++)
                for (int a = 0; a < DOWN && d + a < D; a++)
                    for (int c = 0; c < ACROSS && e + c < E; c++)
                        total[a * ACROSS + c] =
                            multiply_add(x[n * D + d + a], grad[n * E + e + c], total[a * ACROSS + c]);
            vec sums = over_lanes(total);
            if (ACROSS == LANES && e + LANES <= E) {
                *(unaligned *)(grad_w + d * E + e) += sums;
                continue;
            }
            for (int a = 0; a < DOWN && d + a < D; a++)
                for (int c = 0; c < ACROSS && e + c < E; c++) grad_w[(d + a) * E + e + c] += sums[a * ACROSS + c];
        }
}

/* coefs [c, t, 2, j] become the couplings and the gradients of the logits of a block's children c, for each of `times`
iterations. The pointers x, v and g are that block's. */
static void couple_children(const shape *s, long times, long few, const words *x, const word *w, const vec *v,
                            const REAL *prior, const vec *g, vec *coefs) {
    long parents = s->parents, all = s->blocks * parents * E;
    for (long j = 0; j < parents; j++)
        for (long c = 0; c < few; c++) {
            vec vote[E] = {0};
            add_vote(x + c * D / PER, w + (c * parents + j) * D * E / PER, vote);
            for (long t = 0; t < times; t++) {
                vec *to = coefs + (c * times + t) * 2 * parents + j;
                to[0] = dot(vote, v + t * all + j * E);
                to[parents] = dot(vote, g + t * all + j * E);
            }
        }
    for (long n = 0; n < few * times; n++, coefs += 2 * parents) {
        couple(s, prior ? prior + n / times * parents : 0, coefs);
        softmax_backward(parents, coefs, coefs + parents);
    }
}

/* grad_prior[c, j] += the sum over iterations and images of the gradients of child c's logits. */
static void add_prior_gradient(const shape *s, long times, long few, long some, const vec *coefs, REAL *grad_prior) {
    long parents = s->parents;
    for (long c = 0; c < few; c++)
        for (long j = 0; j < parents; j++) {
            vec total = {0};
            for (long n = 0; n < some; n++)
                for (long t = 0; t < times; t++)
                    total += coefs[(((n * FEW + c) * times + t) * 2 + 1) * parents + j];
            for (int l = 0; l < LANES; l++) grad_prior[c * parents + j] += total[l];
        }
}

/* The gradients of a child's votes for parent j in PER blocks, and their part of the child's own gradient. The pointers
coefs, v, g and grad_uniform are those of the first block and of j; grad_uniform and x_gradient may be NULL. */
INLINE void vote_backward(const shape *s, long times, long through_agreement, const word *restrict w, const vec *coefs,
                          const vec *restrict v, const vec *restrict g, const vec *restrict grad_uniform,
                          vec *restrict x_gradient, words *restrict grad_votes) {
    long parents = s->parents, size = parents * E, all = s->blocks * size;
    vec grad_vote[E][PER];
    for (int p = 0; p < PER; p++) {
        vec total[E];
        for (int e = 0; e < E; e++) total[e] = grad_uniform ? grad_uniform[p * size + e] : (vec){0};
        const vec *coef = coefs + p * FEW * 2 * times * parents;
        for (long t = 0; t < times; t++, coef += 2 * parents) {
            add(coef[0], g + t * all + p * size, total);
            if (through_agreement) add(coef[parents], v + t * all + p * size, total);
        }
        for (int e = 0; e < E; e++) grad_vote[e][p] = total[e]; /* total, never indexed, stays in registers */
    }
    vec sums[PER][D] = {0};
    for (int e = 0; x_gradient && e < E; e += PER) {
        words joined[PER];
        for (int p = 0; p < PER; p++) {
            vec parts[PER];
            for (int q = 0; q < PER; q++) parts[q] = grad_vote[e + q][p];
            joined[p] = join(parts);
        }
        for (int d = 0; d < D; d++)
            for (int p = 0; p < PER; p++)
                sums[p][d] = multiply_add(broadcast(w[(d * E + e) / PER]), joined[p], sums[p][d]);
    }
    for (int d = 0; x_gradient && d < D; d++)
        for (int p = 0; p < PER; p++) x_gradient[p * D + d] += sums[p][d];
    for (int e = 0; e < E; e++) grad_votes[e] = join(grad_vote[e]);
}

/* Pack a child by images instead of by d: [D], with the numbers of PER blocks in a word. */
INLINE void by_images(const words *restrict x, long stride, words *restrict images) {
    for (int d = 0; d < D / PER; d++) {
#if PER == 2
        words low = x[d], high = x[stride + d];
        images[2 * d] = (low & 0xffff) | (high << 16);
        images[2 * d + 1] = ((low >> 16) & 0xffff) | (high & ~0xffff);
#else
        images[d] = x[d];
#endif
    }
}

static void gradients_part(const shape *s, long worker, long times, long through_agreement, const words *x,
                           const word *w, const word *transposed, const vec *parent_sum, const REAL *prior,
                           const vec *grad, const vec *grad_uniform, words *grad_x, REAL *grad_w, REAL *grad_prior,
                           vec *scratch) {
    long parents = s->parents, size = parents * E, last = begin(s, worker + 1), stride = s->children * D / PER;
    long coefs_size = 2 * times * parents;
    vec *coefs = scratch, *x_gradient = coefs + FEW * GROUP * coefs_size;
    words *grad_votes = (words *)(x_gradient + FEW * GROUP * D), *images = grad_votes + FEW * GROUP * E;
    for (long i = begin(s, worker); i < last; i += FEW) {
        long few = smaller(FEW, last - i);
        for (long n = 0; grad_w && n < few * size * D; n++) grad_w[i * size * D + n] = 0;
        for (long n = 0; grad_prior && n < few * parents; n++) grad_prior[i * parents + n] = 0;
        for (long k = 0; k < s->blocks; k += GROUP) {
            int some = smaller(GROUP, s->blocks - k);
            const words *child = x + k * stride + i * D / PER;
            for (int n = 0; n < some; n++)
                couple_children(s, times, few, child + n * stride, w + i * size * D / PER, parent_sum + (k + n) * size,
                                prior ? prior + i * parents : 0, grad + (k + n) * size, coefs + n * FEW * coefs_size);
            if (grad_prior) add_prior_gradient(s, times, few, some, coefs, grad_prior + i * parents);
            if (!grad_x && !grad_w) continue;
            for (int n = 0; n < some; n += PER)
                for (long c = 0; c < few; c++)
                    by_images(child + n * stride + c * D / PER, stride, images + (c * GROUP + n) / PER * D);
            for (int n = 0; n < FEW * GROUP * D; n++) x_gradient[n] = (vec){0};
            for (long j = 0; j < parents; j++) {
                for (int n = 0; n < some; n += PER)
                    for (long c = 0; c < few; c++) {
                        long at = (k + n) * size + j * E;
                        vote_backward(s, times, through_agreement, transposed + ((i + c) * parents + j) * D * E / PER,
                                      coefs + (n * FEW + c) * coefs_size + j, parent_sum + at, grad + at,
                                      grad_uniform ? grad_uniform + at : 0,
                                      grad_x ? x_gradient + (c * GROUP + n) * D : 0,
                                      grad_votes + (c * GROUP + n) / PER * E);
                    }
                for (long c = 0; grad_w && c < few; c++) {
                    const words *of_child = images + c * GROUP / PER * D, *of_votes = grad_votes + c * GROUP / PER * E;
                    REAL *matrix = grad_w + ((i + c) * parents + j) * D * E;
                    if (some == GROUP)
                        multiply(GROUP / PER, of_child, of_votes, matrix);
                    else
                        multiply(some / PER, of_child, of_votes, matrix);
                }
            }
            for (int n = 0; grad_x && n < some; n++)
                for (long c = 0; c < few; c++)
                    for (int d = 0; d < D / PER; d++)
                        grad_x[(k + n) * stride + (i + c) * D / PER + d] =
                            join(x_gradient + (c * GROUP + n) * D + d * PER);
        }
    }
}

/* The gradients of the weighted sums of `times` iterations. Those of the logits reach x and w only with
through_agreement. If grad_uniform is not NULL, it is added to the gradient of every vote. A gradient that is NULL is
not computed. */
void gradients(const shape *s, long times, long through_agreement, const words *x, const word *w,
               const word *transposed, const vec *parent_sum, const REAL *prior, const vec *grad,
               const vec *grad_uniform, words *grad_x, REAL *grad_w, REAL *grad_prior, vec *scratch) {
    long room = scratch_size(s, times);
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++)
        gradients_part(s, worker, times, through_agreement, x, w, transposed, parent_sum, prior, grad, grad_uniform,
                       grad_x, grad_w, grad_prior, scratch + worker * room);
}
