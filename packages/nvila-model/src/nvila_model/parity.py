"""The reference's oddities, each behind a name that says what it does.

The defaults are what we hold right; ``docs/parity.md`` lists each with the golden cases that need it.
"""

from dataclasses import dataclass

__all__ = ["Parity"]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Which of the reference's oddities to reproduce; all off by default.

    Attributes:
        one_tile_for_several_images: a prompt of more than one image gets one tile an image, with the bare
            media token, as the reference's ``generate_content`` does without a word.
        video_as_images: every frame of a video becomes an image of one tile and its own ``<image>`` token,
            so that the video encoder is never reached.
        cut_video_at_frame_limit: sampling by fps stops at the frame limit, so that the rest of a longer video is
            never seen, and a rate above the video's own repeats frames. By default the limit is spread over
            the whole video.
        greedy_label_matching: find the answers by matching tokens greedily against the conversation
            without answers; an answer that holds a newline then loses its first newline from the loss and
            the newline after its end-of-turn token is trained instead.
    """

    one_tile_for_several_images: bool = False
    video_as_images: bool = False
    cut_video_at_frame_limit: bool = False
    greedy_label_matching: bool = False
