"""What dropping inside a language model promises: how many image tokens each layer will see.

A compressor in front of the language model must decide before anyone has read the question. Inside it, a few layers
have. There the last token, from which the answer starts, attends to all image tokens; those to which it attends least
are dropped, and every later layer is cheaper for it, in time and in cache. Text tokens all stay, and what stays keeps
its position.

A method says only after which layers how many go on. The counts are known before anything is computed.
"""

from abc import ABC, abstractmethod

from nvila_compress.contract import budget, check_keep


class DropSchedule(ABC):
    """When image tokens are dropped, and how many stay."""

    @abstractmethod
    def shares(self, layers: int) -> dict[int, int | float]:
        """For a model of ``layers`` layers, by the index of a layer: what of all image tokens still enters it.

        Only layers where fewer enter than before are listed. A number or a share, as a compressor's ``keep``.
        """
        ...

    def counts(self, tokens: int, layers: int) -> list[int]:
        """Image tokens that enter each of ``layers`` layers, of the ``tokens`` in the prompt.

        Raises: ValueError for a layer that the model does not have.
        """
        shares = self.shares(layers)
        for layer, share in shares.items():
            check_keep(share)
            if not 0 < layer < layers:
                raise ValueError(
                    f"{self} drops after layer {layer} of {layers}: pass at least 1 and less than the model has"
                )
        counts, now = list[int](), tokens
        for layer in range(layers):
            if layer in shares and tokens:
                now = min(now, budget(shares[layer], tokens))
            counts.append(now)
        return counts
