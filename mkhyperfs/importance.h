/* How much each part of a model's layers counts, by an importance matrix.
 *
 * The output of every branch of a layer (attention, feed-forward) is added to the residual stream,
 * from which all that follows reads. Noise in the weights of a branch becomes noise in its output,
 * in proportion to that output; so it counts by what share of the stream the branch contributes.
 * The matrix tells the squared length x2 of a typical input of the matrix that writes the branch's
 * output, and with the mean square w2 of its weights
 *     E = w2 * x2
 * is the energy of a component of that output, were inputs and weights not correlated. The stream R
 * begins with the embedding's and grows by each E. In trained models a few columns of one or two
 * layers' feed-forward outputs are huge on the first token, and all that follows depends on them; q
 * is imatrix_peak of their inputs. With s = 10 log10(E / (R + E)) and p = 10 log10 q a branch's
 * tensors get K * (s - mean s) + P * max(0, p - mean p) decibels beside the common level, at most
 * MK_IMPORTANCE_LIMIT either way; means are over the layers, for branches of the same kind, and
 * attention has no second term. bench/imatrix.py has the measurements that the formula and its
 * numbers come from.
 *
 * Models that normalise the output of a branch (Gemma 2 and 3, OLMo 2) get no offsets: there E is
 * not what the stream receives. Tensors of one directory are one model. One thread.
 */
#ifndef HYPERFS_MKHYPERFS_IMPORTANCE_H
#define HYPERFS_MKHYPERFS_IMPORTANCE_H

#include "mkhyperfs/imatrix.h"
#include "mkhyperfs/llama_names.h"
#include "mkhyperfs/source.h"

#define MK_IMPORTANCE_K 0.8
#define MK_IMPORTANCE_P 0.5
#define MK_IMPORTANCE_LIMIT 6.0 /* dB */

struct mk_importance;

/* Reads opt->imatrix and samples of the weights that it is about; src has its headers. Warns of
 * what does not fit. -EBADMSG: the file is damaged, or of another model. -ENOMEM and the like. */
int mk_importance_new(const struct mk_options *opt, const struct mk_source *src,
                      struct mk_importance **out, struct hfs_error *err);
void mk_importance_free(struct mk_importance *imp); /* NULL is allowed */

/* The offset in dB of a tensor of the file `path` (below SOURCE); false: nothing is known of it. */
bool mk_importance_of(const struct mk_importance *imp, const char *path, const struct st_tensor *t,
                      double *db);

/* Hash of the importance matrix's file, hexadecimal. */
const char *mk_importance_hash(const struct mk_importance *imp);

/* One branch of one layer of the model number `model`. */
struct mk_branch {
    size_t model;
    int layer;
    enum llama_branch kind;
    double energy; /* E; 0: not known */
    double peak;   /* E q, of several matrices their sum; becomes p */
    double db;     /* the offset */
    bool known;    /* whether there is one */
};

/* The formula. Branches stand model by model, layer by layer, attention before feed-forward;
 * embedding is R at the beginning. Sets db and known. All of one model. */
void mk_importance_offsets(struct mk_branch *branch, size_t count, double embedding);

#endif
