"""Which file names are shards, manifests or videos."""

from __future__ import annotations

from urllib.parse import urlsplit

from schemas.records import InputKind

VIDEO_EXTENSIONS = frozenset(
    (
        *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf", ".m2ts"),
        *(".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".rm", ".ts"),
        *(".video", ".vob", ".webm", ".wmv", ".y4m"),
    )
)
# Read, but in folders mostly previews of the videos beside them.
ANIMATION_EXTENSIONS = frozenset({".gif"})
COMPRESSED_TAR_EXTENSIONS = {
    ".tar.gz": "gz",
    ".tgz": "gz",
    ".tar.bz2": "bz2",
    ".tbz2": "bz2",
    ".tar.xz": "xz",
    ".tar.zst": "zst",
    ".tzst": "zst",
}
MANIFEST_EXTENSIONS = frozenset({".jsonl", ".ndjson", ".csv", ".tsv"})
_COMPRESSED_MANIFEST_EXTENSIONS = {table + dot: dot[1:] for table in MANIFEST_EXTENSIONS for dot in (".gz", ".zst")}
# Manifests where an input names them; in folders they are notes, or sidecars of videos.
LIST_EXTENSIONS = frozenset({".json", ".txt"})
_COMPRESSIONS = COMPRESSED_TAR_EXTENSIONS | _COMPRESSED_MANIFEST_EXTENSIONS
_COMPRESSED = tuple(_COMPRESSIONS)
SUPPORTED = (
    ".tar (also .tar.gz, .tar.bz2, .tar.xz, .tar.zst), .parquet, .jsonl, .csv, .tsv (also with .gz, .zst), .json and "
    ".txt lists and video files such as .mp4"
)


def path_of(uri: str) -> str:
    """Returns the part of a URI that names a file: without the query of an http(s) URL."""
    if uri.startswith(("http://", "https://")):
        return urlsplit(uri).path
    return uri


def split_extension(path: str) -> tuple[str, str]:
    """Splits `dir/name.mp4` into `dir/name` and `.mp4`; compressed tars and tables keep both suffixes together."""
    folder, slash, name = path.rpartition("/")
    lowered = name.lower()
    if lowered.endswith(_COMPRESSED):
        extension = next(extension for extension in _COMPRESSED if lowered.endswith(extension))
        return folder + slash + name[: -len(extension)], extension
    stem, dot, suffix = name.rpartition(".")
    if not stem:
        return path, ""
    return folder + slash + stem, (dot + suffix).lower()


def kind_of(uri: str) -> InputKind | None:
    """Returns how the clips of a file are stored, judged by its extension, or None for any other file."""
    extension = split_extension(path_of(uri))[1]
    if extension == ".tar" or extension in COMPRESSED_TAR_EXTENSIONS:
        return InputKind.TAR
    if extension == ".parquet":
        return InputKind.PARQUET
    if extension in LIST_EXTENSIONS or _is_table(extension):
        return InputKind.MANIFEST
    return InputKind.FILES if extension in VIDEO_EXTENSIONS | ANIMATION_EXTENSIONS else None


def is_read_only_by_name(uri: str) -> bool:
    """Returns whether a file is read only where an input names it: beside videos it would double them."""
    extension = split_extension(path_of(uri))[1]
    return extension in ANIMATION_EXTENSIONS or _is_table(extension)


def compression_of(uri: str) -> str | None:
    """Returns `gz`, `bz2`, `xz` or `zst` for a compressed tar or table, None for every other file."""
    return _COMPRESSIONS.get(split_extension(path_of(uri))[1])


def _is_table(extension: str) -> bool:
    return extension in MANIFEST_EXTENSIONS or extension in _COMPRESSED_MANIFEST_EXTENSIONS
