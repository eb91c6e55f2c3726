/* Routing's passes over the children with the votes in registers: `capsnet/ops/native.py` compiles and calls this.

Compiled for one REAL, D and E. A vec holds the same number of LANES images, so every operation is on many images at
once and W_ij, the same for all, is a scalar. With PAIRS, children and weight are in bf16, and D and E are even: where
the processor has an instruction that adds the products of two pairs of bf16 to a float, a word is such a pair. Else a
word is one REAL. `words` are a word of LANES images. Layouts, all contiguous:

x, grad_x               [blocks, i, D / PER] of words
w                       [i, j, D / PER, E] of word, with neighbours of d in it
turned                  [i, j, D, E / PER] of word, with neighbours of e in it: the weight as it is
grad_w                  [i, j, D, E] of REAL
agreed, grad, even, sum [blocks, j, E] of vec ([t, blocks, j, E] in `gradients`)
prior, grad_prior       [i, j] of REAL, or NULL (as grad_x and grad_w may be)
scratch                 vecs, as many as `scratch_size` says

The number of blocks is a multiple of PER. Each of the workers, which are OpenMP's threads and so PyTorch's, does its
own part of the children with its own scratch and its own sum, [workers, blocks, j, E], so that they share nothing that
they write. */

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
#define TILE 16  /* children, whose matrices stay in the cache while the blocks pass by */
#define FEW 2    /* children, for which what is read of the parents is read once */
#define GROUP 8  /* blocks whose products with a child are added up in registers: a multiple of PER */
#define DOWN (E % LANES && LANES >= 4 ? 4 : 1) /* dimensions of a child and of a parent whose products fill a vec */
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

/* sum + the products of the numbers of a and b */
INLINE vec multiply_add(words a, words b, vec sum) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

INLINE words spread(word a) { return (words)_mm512_set1_epi32(a); }

/* The words of what PER vecs hold, each rounded to bf16. */
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

INLINE words spread(word a) { return a - (words){0}; } /* not +, which would make 0 of -0 */

INLINE words join(const vec *parts) { return parts[0]; }
#endif

typedef vec loose __attribute__((aligned(sizeof(REAL)))); /* a vec anywhere in memory */

typedef struct {
    long children, parents, blocks, none_of_the_above, workers;
} shape;

/* The first child of a worker. */
static long begin(const shape *s, long worker) { return s->children * worker / s->workers; }

int lanes(void) { return LANES; }

int per_word(void) { return PER; }

INLINE long smaller(long a, long b) { return a < b ? a : b; }

/* The votes of one child, its couplings and pushes; or of FEW children and a group of blocks the couplings and pushes
of each iteration, the gradients for x and for votes, and x by images. */
long scratch_size(const shape *s, long times) {
    long links = FEW * GROUP * 2 * times * s->parents, sums = FEW * GROUP * (E + 2 * D), vote = s->parents * (E + 2);
    return links + sums + vote;
}

/* The larger of a and b; b where they cannot be compared. */
INLINE vec larger(vec a, vec b) {
    vec most;
    for (int l = 0; l < LANES; l++) most[l] = a[l] > b[l] ? a[l] : b[l];
    return most;
}

#ifdef SINGLE
/* e^a of a <= 0 or of what is not a number, to float's last digit but one: 2^n e^r, with Cephes' polynomial for
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
        for (int e = 0; e < E; e++) vote[e] = multiply_add(spread(w[d * E + e]), x[d], vote[e]);
}

/* to[e] += share from[e] */
INLINE void add(vec share, const vec *restrict from, vec *restrict to) {
    for (int e = 0; e < E; e++) to[e] += share * from[e];
}

INLINE vec dot(const vec *restrict a, const vec *restrict b) {
    vec part[4] = {0};
    for (int e = 0; e < E; e++) part[e % 4] += a[e] * b[e];
    return (part[0] + part[1]) + (part[2] + part[3]);
}

/* logits[j] += prior[j], and then become their softmax over the parents, with an orphan of logit 0 if leaky. */
static inline void couple(const shape *s, const REAL *restrict prior, vec *restrict logits) {
    long parents = s->parents;
    if (prior)
        for (long j = 0; j < parents; j++) logits[j] += prior[j];
    vec most = s->leaky ? (vec){0} : logits[0];
    for (long j = 0; j < parents; j++) most = larger(most, logits[j]);
    vec total = s->leaky ? exponential(-most) : (vec){0};
    for (long j = 0; j < parents; j++) total += logits[j] = exponential(logits[j] - most);
    vec share = 1 / total;
    for (long j = 0; j < parents; j++) logits[j] *= share;
}

/* pushes[j] become c_j (a_j - sum over k of c_k a_k): the gradient for the logits of couplings c that a pushes. */
static inline void stray(long parents, const vec *restrict couplings, vec *restrict pushes) {
    vec mean = {0};
    for (long j = 0; j < parents; j++) mean += couplings[j] * pushes[j];
    for (long j = 0; j < parents; j++) pushes[j] = couplings[j] * (pushes[j] - mean);
}

/* The sum of a worker's votes. */
static void even_sum_of(const shape *s, long worker, const words *x, const word *w, vec *sum) {
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

void even_sum(const shape *s, const words *x, const word *w, vec *sums) {
    long size = s->blocks * s->parents * E;
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++)
        even_sum_of(s, worker, x, w, sums + worker * size);
}

/* The sum of a worker's votes by their couplings or, with grad, by the strays that grad makes. */
static void weighted_sum_of(const shape *s, long worker, const words *x, const word *w, const vec *agreed,
                            const REAL *prior, const vec *grad, vec *sum, vec *scratch) {
    long parents = s->parents, size = parents * E, last = begin(s, worker + 1);
    vec *votes = scratch, *couplings = votes + size, *pushes = couplings + parents;
    for (long tile = begin(s, worker); tile < last; tile += TILE) {
        long end = smaller(tile + TILE, last);
        for (long k = 0; k < s->blocks; k++)
            for (long i = tile; i < end; i++) {
                const words *child = x + (k * s->children + i) * D / PER;
                const vec *v = agreed + k * size, *g = grad + k * size;
                for (long j = 0; j < parents; j++) {
                    vec vote[E] = {0};
                    add_vote(child, w + (i * parents + j) * D * E / PER, vote);
                    couplings[j] = dot(vote, v + j * E);
                    if (grad) pushes[j] = dot(vote, g + j * E);
                    for (int e = 0; e < E; e++) votes[j * E + e] = vote[e];
                }
                couple(s, prior ? prior + i * parents : 0, couplings);
                if (grad) stray(parents, couplings, pushes);
                for (long j = 0; j < parents; j++)
                    add(grad ? pushes[j] : couplings[j], votes + j * E, sum + k * size + j * E);
            }
    }
}

void weighted_sum(const shape *s, const words *x, const word *w, const vec *agreed, const REAL *prior,
                  const vec *grad, vec *sums, vec *scratch) {
    long size = s->blocks * s->parents * E, room = scratch_size(s, 1);
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++)
        weighted_sum_of(s, worker, x, w, agreed, prior, grad, sums + worker * size, scratch + worker * room);
}

/* Half as many rows, each of two that are `apart`: to each lane the one that is `apart` from it is added, and where the
two hold the same sum then, one is of the first row and one of the second. */
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

/* Lane l of the result is the sum over the lanes of rows[l], which are lost. */
INLINE vec over_lanes(vec *rows) {
    if (LANES > 8) fold(rows, 8);
    if (LANES > 4) fold(rows, 4);
    if (LANES > 2) fold(rows, 2);
    fold(rows, 1);
    return rows[0];
}

/* grad_w[d, e] += sum over n and over the images of x[n, d] grad[n, e]: a tile of as many sums as a vec has lanes is
added up in registers, and then over the lanes. */
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
                *(loose *)(grad_w + d * E + e) += sums;
                continue;
            }
            for (int a = 0; a < DOWN && d + a < D; a++)
                for (int c = 0; c < ACROSS && e + c < E; c++) grad_w[(d + a) * E + e + c] += sums[a * ACROSS + c];
        }
}

/* The couplings and strays [c, t, 2, j] of a block's children c, for each of `times` iterations. The pointers x, v and
g are that block's. */
static void link(const shape *s, long times, long few, const words *x, const word *w, const vec *v, const REAL *prior,
                 const vec *g, vec *links) {
    long parents = s->parents, all = s->blocks * parents * E;
    for (long j = 0; j < parents; j++)
        for (long c = 0; c < few; c++) {
            vec vote[E] = {0};
            add_vote(x + c * D / PER, w + (c * parents + j) * D * E / PER, vote);
            for (long t = 0; t < times; t++) {
                vec *to = links + (c * times + t) * 2 * parents + j;
                to[0] = dot(vote, v + t * all + j * E);
                to[parents] = dot(vote, g + t * all + j * E);
            }
        }
    for (long n = 0; n < few * times; n++, links += 2 * parents) {
        couple(s, prior ? prior + n / times * parents : 0, links);
        stray(parents, links, links + parents);
    }
}

/* grad_prior[c, j] += the sum over iterations and images of what goes to the logits of child c. */
static void sum_strays(const shape *s, long times, long few, long some, const vec *links, REAL *grad_prior) {
    long parents = s->parents;
    for (long c = 0; c < few; c++)
        for (long j = 0; j < parents; j++) {
            vec total = {0};
            for (long n = 0; n < some; n++)
                for (long t = 0; t < times; t++) total += links[(((n * FEW + c) * times + t) * 2 + 1) * parents + j];
            for (int l = 0; l < LANES; l++) grad_prior[c * parents + j] += total[l];
        }
}

/* What goes through the votes of a child for parent j in PER blocks. The pointers links, v, g and even are those of the
first block and of j; even and to_x may be NULL. */
INLINE void descend(const shape *s, long times, long through, const word *restrict w, const vec *links,
                    const vec *restrict v, const vec *restrict g, const vec *restrict even, vec *restrict to_x,
                    words *restrict to_votes) {
    long parents = s->parents, size = parents * E, all = s->blocks * size;
    vec to_vote[E][PER];
    for (int p = 0; p < PER; p++) {
        vec total[E];
        for (int e = 0; e < E; e++) total[e] = even ? even[p * size + e] : (vec){0};
        const vec *link = links + p * FEW * 2 * times * parents;
        for (long t = 0; t < times; t++, link += 2 * parents) {
            add(link[0], g + t * all + p * size, total);
            if (through) add(link[parents], v + t * all + p * size, total);
        }
        for (int e = 0; e < E; e++) to_vote[e][p] = total[e]; /* total, never indexed, stays in registers */
    }
    vec sums[PER][D] = {0};
    for (int e = 0; to_x && e < E; e += PER) {
        words joined[PER];
        for (int p = 0; p < PER; p++) {
            vec parts[PER];
            for (int q = 0; q < PER; q++) parts[q] = to_vote[e + q][p];
            joined[p] = join(parts);
        }
        for (int d = 0; d < D; d++)
            for (int p = 0; p < PER; p++)
                sums[p][d] = multiply_add(spread(w[(d * E + e) / PER]), joined[p], sums[p][d]);
    }
    for (int d = 0; to_x && d < D; d++)
        for (int p = 0; p < PER; p++) to_x[p * D + d] += sums[p][d];
    for (int e = 0; e < E; e++) to_votes[e] = join(to_vote[e]);
}

/* A child of PER blocks, [D] with the blocks' numbers in a word. */
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

static void gradients_of(const shape *s, long worker, long times, long through, const words *x, const word *w,
                         const word *turned, const vec *agreed, const REAL *prior, const vec *grad, const vec *even,
                         words *grad_x, REAL *grad_w, REAL *grad_prior, vec *scratch) {
    long parents = s->parents, size = parents * E, last = begin(s, worker + 1), stride = s->children * D / PER;
    long link_size = 2 * times * parents;
    vec *links = scratch, *to_x = links + FEW * GROUP * link_size;
    words *to_votes = (words *)(to_x + FEW * GROUP * D), *images = to_votes + FEW * GROUP * E;
    for (long i = begin(s, worker); i < last; i += FEW) {
        long few = smaller(FEW, last - i);
        for (long n = 0; grad_w && n < few * size * D; n++) grad_w[i * size * D + n] = 0;
        for (long n = 0; grad_prior && n < few * parents; n++) grad_prior[i * parents + n] = 0;
        for (long k = 0; k < s->blocks; k += GROUP) {
            int some = smaller(GROUP, s->blocks - k);
            const words *child = x + k * stride + i * D / PER;
            for (int n = 0; n < some; n++)
                link(s, times, few, child + n * stride, w + i * size * D / PER, agreed + (k + n) * size,
                     prior ? prior + i * parents : 0, grad + (k + n) * size, links + n * FEW * link_size);
            if (grad_prior) sum_strays(s, times, few, some, links, grad_prior + i * parents);
            if (!grad_x && !grad_w) continue;
            for (int n = 0; n < some; n += PER)
                for (long c = 0; c < few; c++)
                    by_images(child + n * stride + c * D / PER, stride, images + (c * GROUP + n) / PER * D);
            for (int n = 0; n < FEW * GROUP * D; n++) to_x[n] = (vec){0};
            for (long j = 0; j < parents; j++) {
                for (int n = 0; n < some; n += PER)
                    for (long c = 0; c < few; c++) {
                        long at = (k + n) * size + j * E;
                        descend(s, times, through, turned + ((i + c) * parents + j) * D * E / PER,
                                links + (n * FEW + c) * link_size + j, agreed + at, grad + at, even ? even + at : 0,
                                grad_x ? to_x + (c * GROUP + n) * D : 0, to_votes + (c * GROUP + n) / PER * E);
                    }
                for (long c = 0; grad_w && c < few; c++) {
                    const words *child_images = images + c * GROUP / PER * D, *to_vote = to_votes + c * GROUP / PER * E;
                    REAL *to_w = grad_w + ((i + c) * parents + j) * D * E;
                    if (some == GROUP)
                        multiply(GROUP / PER, child_images, to_vote, to_w);
                    else
                        multiply(some / PER, child_images, to_vote, to_w);
                }
            }
            for (int n = 0; grad_x && n < some; n++)
                for (long c = 0; c < few; c++)
                    for (int d = 0; d < D / PER; d++)
                        grad_x[(k + n) * stride + (i + c) * D / PER + d] = join(to_x + (c * GROUP + n) * D + d * PER);
        }
    }
}

/* The gradients of the weighted sums of `times` iterations; the strays reach x and w only if through. Every vote has
the gradient `even` besides, if that is not NULL. A gradient that is NULL is not computed. */
void gradients(const shape *s, long times, long through, const words *x, const word *w, const word *turned,
               const vec *agreed, const REAL *prior, const vec *grad, const vec *even, words *grad_x, REAL *grad_w,
               REAL *grad_prior, vec *scratch) {
    long room = scratch_size(s, times);
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++)
        gradients_of(s, worker, times, through, x, w, turned, agreed, prior, grad, even, grad_x, grad_w, grad_prior,
                     scratch + worker * room);
}
