"""What the packets of a video say without being decoded: how many frames, when, and from where."""

from dataclasses import dataclass
from itertools import pairwise

from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from nvila_model.inputs.files.clean_keys import is_clean_key
from nvila_model.inputs.limits import current_limits


@dataclass(frozen=True, kw_only=True)
class Packets:
    """The packets of one pass through a file.

    Attributes:
        count: packets that hold a frame.
        stamps: their time stamps in showing order; empty where some are missing, or twice there, or where the
            order in which they are decoded runs backwards (joined recordings): then frames must be counted.
        keys: stamps from which decoding can begin, ascending.
        end: seconds at which the last packet of another stream ends.
        own_end: the same of the video's own packets.
        broken: reading ended with an error.
    """

    count: int
    stamps: list[int]
    keys: list[int]
    end: float
    own_end: float
    broken: bool


def read_packets(container: InputContainer, stream: VideoStream) -> Packets:
    """Read all packets of an open file, or one more than ``Limits.video_frames``."""
    most = current_limits().video_frames
    stamps: list[int | None] = []
    decoding: list[int] = []
    keys: list[int] = []
    ends = [0.0, 0.0]
    codec, extradata = stream.codec_context.name, stream.codec_context.extradata
    broken = False
    try:
        for packet in container.demux():
            own = packet.stream_index == stream.index
            if packet.pts is not None and packet.time_base is not None:
                ends[own] = max(ends[own], float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if not own or not packet.size or packet.is_discard:
                continue
            stamps.append(packet.pts)
            if packet.dts is not None:
                decoding.append(packet.dts)
            if packet.is_keyframe and packet.pts is not None and is_clean_key(bytes(packet), codec, extradata):
                keys.append(packet.pts)
            if len(stamps) > most:
                break
    except FFmpegError:
        broken = True  # what was read before the damage is the video
    known = [stamp for stamp in stamps if stamp is not None]
    in_order = len(set(known)) == len(stamps) and all(one <= other for one, other in pairwise(decoding))
    return Packets(
        count=len(stamps),
        stamps=sorted(known) if in_order else [],
        keys=[] if _has_palette(stream) else sorted(keys),
        end=ends[0],
        own_end=ends[1],
        broken=broken,
    )


def _has_palette(stream: VideoStream) -> bool:
    """Whether colours come with the first packet only: decoding must begin there."""
    context = stream.codec_context
    return context.pix_fmt == "pal8" or context.name in ("msrle", "msvideo1", "8bps", "smc", "cinepak", "tscc")
