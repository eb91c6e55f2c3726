/* Routing's three passes over the children with the votes in registers: `capsnet/ops/native.py` compiles and calls this.

Compiled for one REAL, D and E. A vec holds the same number of LANES images, so every operation is on many images at
once and W_ij, the same for all, is a scalar. Layouts, all contiguous:

x, grad_x         [blocks, i, D] of vec
w, grad_w         [i, j, D, E]
agreed, grad, sum [blocks, j, E] of vec ([t, blocks, j, E] in `gradients`)
prior, grad_prior [i, j], or NULL
scratch           vecs, as many as `scratch_size` says

A call does the children from first to last alone, so that threads share nothing that they write. */

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES ((int)(BYTES / sizeof(REAL)))
#define TILE 16 /* children, whose matrices stay in the cache while the blocks pass by */
#define GROUP 4 /* blocks whose products with a child are added up in registers */

typedef REAL vec __attribute__((vector_size(BYTES)));

typedef struct {
    long children, parents, blocks, leaky, first, last;
} shape;

int lanes(void) { return LANES; }

/* Votes, then a coupling, an agreement and a stray of each parent; and the matrices' gradient by lanes. */
long scratch_size(const shape *s) { return s->parents * (E + GROUP * E + 3 + D * E); }

static inline vec splat(REAL a) { return a - (vec){0}; }

static inline vec larger(vec a, vec b) {
    for (int l = 0; l < LANES; l++) a[l] = a[l] > b[l] ? a[l] : b[l];
    return a;
}

#ifdef SINGLE
typedef int ivec __attribute__((vector_size(BYTES)));
/* e^a of a <= 0, to float's last digit but one: 2^n e^r, with Cephes' polynomial for |r| <= ln 2 / 2. */
static inline vec exponential(vec a) {
    a = larger(a, splat(-87));
    ivec n = __builtin_convertvector(a * (REAL)1.44269504088896341 - (REAL)0.5, ivec);
    vec m = __builtin_convertvector(n, vec);
    vec r = a - m * (REAL)0.693359375 + m * (REAL)2.12194440e-4;
    vec p = splat(1.9875691500e-4);
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
static inline vec exponential(vec a) {
    for (int l = 0; l < LANES; l++) a[l] = exp(a[l]);
    return a;
}
#endif

/* votes[j, e] = sum over d of w[j, d, e] x[d] */
static inline void vote(long parents, const vec *restrict x, const REAL *restrict w, vec *restrict votes) {
    for (long j = 0; j < parents; j++, w += D * E, votes += E) {
        vec total[E];
        for (int e = 0; e < E; e++) total[e] = w[e] * x[0];
        for (int d = 1; d < D; d++)
            for (int e = 0; e < E; e++) total[e] += w[d * E + e] * x[d];
        for (int e = 0; e < E; e++) votes[e] = total[e];
    }
}

/* product[j] = sum over e of votes[j, e] with[j, e] */
static inline void agree(long parents, const vec *restrict votes, const vec *restrict with, vec *restrict product) {
    for (long j = 0; j < parents; j++, votes += E, with += E) {
        vec even = votes[0] * with[0], odd = {0};
        for (int e = 1; e + 1 < E; e += 2) {
            odd += votes[e] * with[e];
            even += votes[e + 1] * with[e + 1];
        }
        if (E % 2 == 0) odd += votes[E - 1] * with[E - 1];
        product[j] = even + odd;
    }
}

/* couplings[j]: the softmax over the parents of prior[j] + votes[j]·agreed[j], with an orphan of logit 0 if leaky. */
static inline void couple(const shape *s, const vec *votes, const vec *agreed, const REAL *prior, vec *couplings) {
    agree(s->parents, votes, agreed, couplings);
    if (prior)
        for (long j = 0; j < s->parents; j++) couplings[j] += prior[j];
    vec most = s->leaky ? (vec){0} : couplings[0];
    for (long j = 0; j < s->parents; j++) most = larger(most, couplings[j]);
    vec total = s->leaky ? exponential(-most) : (vec){0};
    for (long j = 0; j < s->parents; j++) total += couplings[j] = exponential(couplings[j] - most);
    vec share = 1 / total;
    for (long j = 0; j < s->parents; j++) couplings[j] *= share;
}

/* strays[j] = c_j (a_j - sum over k of c_k a_k): the gradient for the logits of couplings that are pushed by a. */
static inline void stray(long parents, const vec *couplings, vec *pushes) {
    vec mean = {0};
    for (long j = 0; j < parents; j++) mean += couplings[j] * pushes[j];
    for (long j = 0; j < parents; j++) pushes[j] = couplings[j] * (pushes[j] - mean);
}

/* sum[j, e] += shares[j] votes[j, e] */
static inline void gather(long parents, const vec *restrict shares, const vec *restrict votes, vec *restrict sum) {
    for (long j = 0; j < parents; j++, votes += E, sum += E)
        for (int e = 0; e < E; e++) sum[e] += shares[j] * votes[e];
}

/* The sum of the votes by their couplings or, with grad, by the strays that grad makes. */
void weighted_sum(const shape *s, const vec *x, const REAL *w, const vec *agreed, const REAL *prior, const vec *grad,
                  vec *sum, vec *scratch) {
    long parents = s->parents, parent_size = parents * E;
    vec *votes = scratch, *couplings = votes + parent_size, *pushes = couplings + parents;
    for (long tile = s->first; tile < s->last; tile += TILE)
        for (long k = 0; k < s->blocks; k++)
            for (long i = tile; i < tile + TILE && i < s->last; i++) {
                vote(parents, x + (k * s->children + i) * D, w + i * parent_size * D, votes);
                couple(s, votes, agreed + k * parent_size, prior ? prior + i * parents : 0, couplings);
                if (grad) {
                    agree(parents, votes, grad + k * parent_size, pushes);
                    stray(parents, couplings, pushes);
                }
                gather(parents, grad ? pushes : couplings, votes, sum + k * parent_size);
            }
}

/* grad_x[d] = sum over j, e of w[j, d, e] grad[j, e] */
static inline void descend(long parents, const REAL *restrict w, const vec *restrict grad, vec *restrict grad_x) {
    vec total[D];
    for (int d = 0; d < D; d++) total[d] = (vec){0};
    for (long j = 0; j < parents; j++, w += D * E, grad += E)
        for (int e = 0; e < E; e++)
            for (int d = 0; d < D; d++) total[d] += w[d * E + e] * grad[e];
    for (int d = 0; d < D; d++) grad_x[d] = total[d];
}

/* grad_w[j, d, e] += sum over n of x[n][d] grad[n, j, e], by lanes */
static inline void multiply(long parents, long some, const vec **x, const vec *restrict grad, vec *restrict grad_w) {
    long parent_size = parents * E;
    for (long j = 0; j < parents; j++)
        for (int d = 0; d < D; d++)
            for (int e = 0; e < E; e++) {
                vec total = grad_w[(j * D + d) * E + e];
                for (long n = 0; n < some; n++) total += x[n][d] * grad[n * parent_size + j * E + e];
                grad_w[(j * D + d) * E + e] = total;
            }
}

static inline REAL over_lanes(vec a) {
    REAL total = 0;
    for (int l = 0; l < LANES; l++) total += a[l];
    return total;
}

/* The gradients of the weighted sums of `times` iterations; the strays reach x and w only if through. */
void gradients(const shape *s, long times, long through, const vec *x, const REAL *w, const vec *agreed,
               const REAL *prior, const vec *grad, vec *grad_x, REAL *grad_w, REAL *grad_prior, vec *scratch) {
    long parents = s->parents, parent_size = parents * E, all = s->blocks * parent_size;
    vec *votes = scratch, *to_votes = votes + parent_size, *couplings = to_votes + GROUP * parent_size;
    vec *pushes = couplings + parents, *to_prior = pushes + parents, *to_w = to_prior + parents;
    for (long i = s->first; i < s->last; i++) {
        const REAL *matrices = w + i * parent_size * D;
        for (long n = 0; n < parents; n++) to_prior[n] = (vec){0};
        for (long n = 0; n < parent_size * D; n++) to_w[n] = (vec){0};
        for (long k = 0; k < s->blocks; k += GROUP) {
            long some = s->blocks - k < GROUP ? s->blocks - k : GROUP;
            const vec *child[GROUP];
            for (long n = 0; n < some; n++) {
                const vec *v = agreed + (k + n) * parent_size, *g = grad + (k + n) * parent_size;
                vec *to_vote = to_votes + n * parent_size;
                child[n] = x + ((k + n) * s->children + i) * D;
                vote(parents, child[n], matrices, votes);
                for (long m = 0; m < parent_size; m++) to_vote[m] = (vec){0};
                for (long t = 0; t < times; t++, v += all, g += all) {
                    couple(s, votes, v, prior ? prior + i * parents : 0, couplings);
                    gather(parents, couplings, g, to_vote);
                    if (!through && !prior) continue;
                    agree(parents, votes, g, pushes);
                    stray(parents, couplings, pushes);
                    if (through) gather(parents, pushes, v, to_vote);
                    for (long j = 0; j < parents; j++) to_prior[j] += pushes[j];
                }
                descend(parents, matrices, to_vote, grad_x + ((k + n) * s->children + i) * D);
            }
            multiply(parents, some, child, to_votes, to_w);
        }
        for (long n = 0; n < parent_size * D; n++) grad_w[i * parent_size * D + n] = over_lanes(to_w[n]);
        if (prior)
            for (long j = 0; j < parents; j++) grad_prior[i * parents + j] = over_lanes(to_prior[j]);
    }
}
