/* Routing's passes over the children with the votes in registers: `capsnet/ops/native.py` compiles and calls this.

Compiled for one REAL, D and E. A vec holds the same number of LANES images, so every operation is on many images at
once and W_ij, the same for all, is a scalar. Layouts, all contiguous:

x, grad_x               [blocks, i, D] of vec
w, grad_w               [i, j, D, E]
agreed, grad, even, sum [blocks, j, E] of vec ([t, blocks, j, E] in `gradients`)
prior, grad_prior       [i, j], or NULL (as grad_x and grad_w may be)
scratch                 vecs, as many as `scratch_size` says

Each of the workers, which are OpenMP's threads and so PyTorch's, does its own part of the children with its own scratch
and its own sum, [workers, blocks, j, E], so that they share nothing that they write. */

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES ((int)(BYTES / sizeof(REAL)))
#define TILE 16  /* children, whose matrices stay in the cache while the blocks pass by */
#define GROUP 8  /* blocks whose products with a child are added up in registers */
#define DOWN (LANES < 4 ? LANES : 4) /* dimensions of a child and of a parent whose products fill a vec */
#define ACROSS (LANES / DOWN)
#define INLINE static inline __attribute__((always_inline))

typedef REAL vec __attribute__((vector_size(BYTES)));
#ifdef SINGLE
typedef int bits __attribute__((vector_size(BYTES)));
#else
typedef long long bits __attribute__((vector_size(BYTES)));
#endif

typedef struct {
    long children, parents, blocks, leaky, workers;
} shape;

/* The first child of a worker. */
static long begin(const shape *s, long worker) { return s->children * worker / s->workers; }

int lanes(void) { return LANES; }

/* Votes' gradients of a group of blocks, or votes; what goes to the prior; coupling and push of each iteration. */
long scratch_size(const shape *s, long times) { return s->parents * (GROUP * E + 1 + 2 * times); }

/* The larger of a and b; b where they cannot be compared. */
INLINE vec larger(vec a, vec b) {
    bits more = a > b;
    return (vec)((more & (bits)a) | (~more & (bits)b));
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
INLINE void add_vote(const vec *restrict x, const REAL *restrict w, vec *restrict vote) {
    for (int d = 0; d < D; d++)
        for (int e = 0; e < E; e++) vote[e] += w[d * E + e] * x[d];
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
static void even_sum_of(const shape *s, long worker, const vec *x, const REAL *w, vec *sum) {
    long parents = s->parents, last = begin(s, worker + 1);
    for (long tile = begin(s, worker); tile < last; tile += TILE)
        for (long k = 0; k < s->blocks; k++)
            for (long j = 0; j < parents; j++) {
                vec total[E], *to = sum + (k * parents + j) * E;
                for (int e = 0; e < E; e++) total[e] = to[e];
                for (long i = tile; i < tile + TILE && i < last; i++)
                    add_vote(x + (k * s->children + i) * D, w + (i * parents + j) * D * E, total);
                for (int e = 0; e < E; e++) to[e] = total[e];
            }
}

void even_sum(const shape *s, const vec *x, const REAL *w, vec *sums) {
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++)
        even_sum_of(s, worker, x, w, sums + worker * s->blocks * s->parents * E);
}

/* The sum of a worker's votes by their couplings or, with grad, by the strays that grad makes. */
static void weighted_sum_of(const shape *s, long worker, const vec *x, const REAL *w, const vec *agreed,
                            const REAL *prior, const vec *grad, vec *sum, vec *scratch) {
    long parents = s->parents, size = parents * E, last = begin(s, worker + 1);
    vec *votes = scratch, *couplings = votes + size, *pushes = couplings + parents;
    for (long tile = begin(s, worker); tile < last; tile += TILE)
        for (long k = 0; k < s->blocks; k++)
            for (long i = tile; i < tile + TILE && i < last; i++) {
                const vec *child = x + (k * s->children + i) * D, *v = agreed + k * size, *g = grad + k * size;
                for (long j = 0; j < parents; j++) {
                    vec vote[E] = {0};
                    add_vote(child, w + (i * parents + j) * D * E, vote);
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

void weighted_sum(const shape *s, const vec *x, const REAL *w, const vec *agreed, const REAL *prior, const vec *grad,
                  vec *sums, vec *scratch) {
    long size = s->blocks * s->parents * E, room = scratch_size(s, 1);
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++)
        weighted_sum_of(s, worker, x, w, agreed, prior, grad, sums + worker * size, scratch + worker * room);
}

/* The sums of neighbouring lanes of a, then those of b. */
INLINE vec neighbours(vec a, vec b) {
#ifdef __clang__
    vec sum;
    for (int l = 0; l < LANES / 2; l++) sum[l] = a[2 * l] + a[2 * l + 1], sum[LANES / 2 + l] = b[2 * l] + b[2 * l + 1];
    return sum;
#else
    bits even, odd;
    for (int l = 0; l < LANES; l++) even[l] = 2 * l, odd[l] = 2 * l + 1;
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
#endif
}

/* Lane l of the result is the sum over the lanes of rows[l], which are lost. */
INLINE vec over_lanes(vec *rows) {
    for (int many = LANES; many > 1; many /= 2)
        for (int n = 0; n < many / 2; n++) rows[n] = neighbours(rows[2 * n], rows[2 * n + 1]);
    return rows[0];
}

/* grad_w[d, e] += sum over n and over the images of x[n][d] grad[n * stride + e]: a tile of as many sums as a vec has
lanes is added up in registers, and then over the lanes. */
INLINE void multiply(int some, const vec *const *x, const vec *grad, long stride, REAL *grad_w) {
    for (int d = 0; d < D; d += DOWN)
        for (int e = 0; e < E; e += ACROSS) {
            vec total[DOWN * ACROSS] = {0};
            for (int n = 0; n < some; n++)
                for (int a = 0; a < DOWN && d + a < D; a++)
                    for (int c = 0; c < ACROSS && e + c < E; c++)
                        total[a * ACROSS + c] += x[n][d + a] * grad[n * stride + e + c];
            vec sums = over_lanes(total);
            for (int a = 0; a < DOWN && d + a < D; a++)
                for (int c = 0; c < ACROSS && e + c < E; c++) grad_w[(d + a) * E + e + c] += sums[a * ACROSS + c];
        }
}

/* What goes through one child of a block of images. The pointers v, g and even are that block's; to_x may be NULL, and
without votes nothing but to_prior is asked for. */
static inline void descend(const shape *s, long times, long through, const vec *restrict x, const REAL *restrict w,
                           const vec *restrict v, const REAL *restrict prior, const vec *restrict g,
                           const vec *restrict even, long votes, vec *restrict to_x, vec *restrict to_votes,
                           vec *restrict to_prior, vec *restrict couplings) {
    long parents = s->parents, all = s->blocks * parents * E;
    vec *pushes = couplings + times * parents;
    for (long j = 0; j < parents; j++) {
        vec vote[E] = {0};
        add_vote(x, w + j * D * E, vote);
        for (long t = 0; t < times; t++) {
            couplings[t * parents + j] = dot(vote, v + t * all + j * E);
            pushes[t * parents + j] = dot(vote, g + t * all + j * E);
        }
    }
    for (long t = 0; t < times; t++) {
        couple(s, prior, couplings + t * parents);
        stray(parents, couplings + t * parents, pushes + t * parents);
        for (long j = 0; j < parents; j++) to_prior[j] += pushes[t * parents + j];
    }
    if (!votes) return;
    vec total[D] = {0};
    for (long j = 0; j < parents; j++, w += D * E) {
        vec to_vote[E];
        for (int e = 0; e < E; e++) to_vote[e] = even ? even[j * E + e] : (vec){0};
        for (long t = 0; t < times; t++) {
            add(couplings[t * parents + j], g + t * all + j * E, to_vote);
            if (through) add(pushes[t * parents + j], v + t * all + j * E, to_vote);
        }
        for (int e = 0; e < E; e++) to_votes[j * E + e] = to_vote[e]; /* to_vote, never indexed, stays in registers */
        if (to_x)
            for (int e = 0; e < E; e++)
                for (int d = 0; d < D; d++) total[d] += w[d * E + e] * to_votes[j * E + e];
    }
    if (to_x)
        for (int d = 0; d < D; d++) to_x[d] = total[d];
}

static void gradients_of(const shape *s, long worker, long times, long through, const vec *x, const REAL *w,
                         const vec *agreed, const REAL *prior, const vec *grad, const vec *even, vec *grad_x,
                         REAL *grad_w, REAL *grad_prior, vec *scratch) {
    long parents = s->parents, size = parents * E;
    vec *to_votes = scratch, *to_prior = to_votes + GROUP * size, *couplings = to_prior + parents;
    for (long i = begin(s, worker); i < begin(s, worker + 1); i++) {
        REAL *to_w = grad_w ? grad_w + i * size * D : 0;
        for (long n = 0; to_w && n < size * D; n++) to_w[n] = 0;
        for (long j = 0; j < parents; j++) to_prior[j] = (vec){0};
        for (long k = 0; k < s->blocks; k += GROUP) {
            int some = s->blocks - k < GROUP ? s->blocks - k : GROUP;
            const vec *child[GROUP];
            for (int n = 0; n < some; n++) {
                long place = (k + n) * s->children + i, parent = (k + n) * size;
                child[n] = x + place * D;
                descend(s, times, through, child[n], w + i * size * D, agreed + parent, prior ? prior + i * parents : 0,
                        grad + parent, even ? even + parent : 0, grad_x || grad_w, grad_x ? grad_x + place * D : 0,
                        to_votes + n * size, to_prior, couplings);
            }
            for (long j = 0; to_w && j < parents; j++)
                if (some == GROUP)
                    multiply(GROUP, child, to_votes + j * E, size, to_w + j * D * E);
                else
                    multiply(some, child, to_votes + j * E, size, to_w + j * D * E);
        }
        for (long j = 0; grad_prior && j < parents; j++) {
            grad_prior[i * parents + j] = 0;
            for (int l = 0; l < LANES; l++) grad_prior[i * parents + j] += to_prior[j][l];
        }
    }
}

/* The gradients of the weighted sums of `times` iterations; the strays reach x and w only if through. Every vote has
the gradient `even` besides, if that is not NULL. A gradient that is NULL is not computed. */
void gradients(const shape *s, long times, long through, const vec *x, const REAL *w, const vec *agreed,
               const REAL *prior, const vec *grad, const vec *even, vec *grad_x, REAL *grad_w, REAL *grad_prior,
               vec *scratch) {
    long room = scratch_size(s, times);
#pragma omp parallel for num_threads(s->workers)
    for (long worker = 0; worker < s->workers; worker++)
        gradients_of(s, worker, times, through, x, w, agreed, prior, grad, even, grad_x, grad_w, grad_prior,
                     scratch + worker * room);
}
