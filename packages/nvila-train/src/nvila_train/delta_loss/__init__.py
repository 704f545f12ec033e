"""DeltaLoss: keep the samples that a large model gets right and a small one does not.

**The problem.** An instruction mixture grows by adding sources, and with them come samples that teach nothing: some
are answered without a look at the picture, some nobody could answer. Training time is the same for all of them.

**The method.** Two models of one family, a large and a small one, read every sample once, and of each the probability
of the answer is taken:

    d(x) = log p_large(x) - log p_small(x)

Near zero both models do equally well, or equally badly: the sample is too easy, or too hard, or its answer is
arbitrary. Below zero the small model does better, so what is learnt from it is no skill that comes with size; such
samples distract. Above zero lies what can be learnt and is not yet trivial. Of each source the top ``ceil(keep * n)``
samples stay, so that no source vanishes because its answers are long or its wording is odd.

**Why not the alternative.** One model's loss alone cannot tell a hard sample from a faulty one: both are improbable.
The difference can, since a fault is improbable to both. Clustering pictures and drawing evenly from the clusters (the
paper's baseline, here as ``cluster``) spreads over what is seen and knows nothing of what is asked. A random half is
the second baseline, and a strong one; the paper's margins are one to two points.

The paper does not say whether log p is a sum over the answer's tokens or a mean. The formula reads as the sum, which
is what is done here; it makes long answers count for more, at both ends. ``normalize="tokens"`` takes means.

**How it is computed.** A sample costs what its tiles and tokens cost, and a loop over samples pays for more: files
are read and cut once for each model, and products of one sample's few tokens leave most of a processor idle. Here
files are read once for both models, tiles that are the same go through the vision tower once, what samples have in
common at their beginnings goes through the language model once, and so do samples of like length together, several to
a row where they fit, so that hardly any position is padding. One long row of all samples, as in training, has no
padding at all, but scores each sample against every other in it only to mask the result.

    choices   what may be chosen, and the error of all that cannot be used
    score     both models over a stream of conversations: ``delta_loss``
    score_records  a whole source, in shards that are resumed and spread over processes
    score_table    the table of scores, in Parquet
    prune     which rows stay: ``prune``
    subset    those rows, written in the form of their source
    cluster   pictures in groups, for the cluster baseline
    forward/  samples through both models
        windows   conversations to model inputs, for both models at once, in windows of bounded memory
        distinct_tiles     tiles that are not the same as an earlier one
        families  samples that share what they begin with
        batches   which of them go through the language model together
        log_probabilities  of answers under one model
    storage/  which rows there are, and how some are written: lines, tables, CSV, tars
    page/     what to look at before a subset is trusted

Source: NVILA, section 2.2 and Table 3.
"""
