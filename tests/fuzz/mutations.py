"""Changes of small valid files: of bytes, of JSON values, of tensors, of members of archives, of a pickle's opcodes."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Files = dict[str, bytes]

# Numbers, texts and nestings at the edges of what code expects.
VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 2, 255, 65536, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**7, 10**30, 10**99, 10**400),
    *(0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), True, False, None),
    *("", "a", "0", "gelu", "../../x", "\x1b[31mX", "\ud800", "\u202eabc", "x" * 5000, "\0"),
    *([], {}, [[]], [1, 2], [[1], [2]], {"a": 1}, [None], ["a"], [1.5, 2], [-1, -1], [2**70] * 2, [0, 0], [True, True]),
)
# What json.dumps does not write.
RAW = ("[" * 100_000 + "]" * 100_000, "[" * 100 + "]" * 100, "9" * 5000, '{"a":1,"a":2}', "1e999", "-Infinity")
NAMES = (
    *("norm.weight", "head.weight", "cls_token", "pos_embed", "blocks.1.norm1.weight", "a/b", "../x", "", "x" * 3000),
    *("blocks.20000000.norm1.weight", "blocks.99999999999999999999.norm1.weight", "blocks.0.ls1.gamma", "reg_token"),
    *("a.patch_embed.proj.weight", "attn_pool.latent", "attn_pool.blocks.9999999.norm1.weight", "\x1b[31mred"),
    *("patch_embed.backbone.stages.0.0.conv1.weight", "patch_embed.backbone.stem.conv.weight", "head_dist.weight"),
    *("rel_pos_bias.relative_position_bias_table", "blocks.0.attn.rel_pos_h", "neck.0.weight", "merger.norm.weight"),
)
SHAPES = (
    *((), (0,), (1,), (0, 2**62), (1,) * 70, (0,) * 70, (16,), (1, 1, 16), (16, 3, 4, 4), (16, 3, 0, 4), (3, 16)),
    *((1, 16, 16), (7, 2), (2,), (1, 5, 16), (48, 16), (16, 16)),
)
DTYPES = (("F16", 2), ("BF16", 2), ("I8", 1), ("I64", 8), ("F64", 8), ("BOOL", 1), ("F8_E4M3", 1), ("U16", 2), ("X", 4))
GLOBALS = (
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch._utils _rebuild_sparse_tensor"),
    *("torch._utils _rebuild_qtensor", "torch._utils _rebuild_wrapper_subclass", "torch._tensor _rebuild_from_type_v2"),
    *("torch FloatStorage", "torch QInt8Storage", "torch float16", "torch Size", "torch device", "os system"),
    *("builtins bytearray", "builtins getattr", "builtins set", "_codecs encode", "collections OrderedDict"),
    *("__torch__.a B", "torch.jit._pickle build_intlist", "numpy dtype", "copyreg _reconstructor"),
)
OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


def bits(data: bytes, random: Random, end: int | None = None) -> bytes:
    """Flip, overwrite, remove, cut off or repeat bytes before a position."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not found:
            break
        at, kind = random.randrange(min(end or len(found), len(found))), random.random()
        if kind < 0.4:
            found[at] ^= 1 << random.randrange(8)
        elif kind < 0.6:
            found[at] = random.choice((0, 127, 128, 255, random.randrange(256)))
        elif kind < 0.75:
            number = random.choice((2**63, 2**64 - 1, 2**40, 2**31, 0, len(found)))
            found[at : at + 8] = struct.pack(random.choice("<>") + "Q", number)
        elif kind < 0.85:
            del found[at : at + random.choice((1, 8, 100, 1000))]
        elif kind < 0.92:
            del found[at:]
        else:
            found[at:at] = found[at : at + random.choice((4, 30, 200))]
    return bytes(found)


def text_of(value: Any) -> bytes:
    """Return JSON in which texts of :data:`RAW` stand as they are."""
    found = json.dumps(value)
    for number, raw in enumerate(RAW):
        found = found.replace(f'"RAW{number}"', raw)
    return found.encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _places(item)


def changed_json(value: Any, random: Random) -> Any:
    """Return JSON data with values replaced, removed, added or moved."""
    found = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(found))
        if not places:
            break
        holder, key = random.choice(places)
        kind = random.random()
        if kind < 0.6:
            holder[key] = copy.deepcopy(random.choice(VALUES))
        elif kind < 0.65:
            holder[key] = f"RAW{random.randrange(len(RAW))}"
        elif kind < 0.75:
            del holder[key]
        elif kind < 0.85 and isinstance(holder, dict):
            name = random.choice(("vision_config", "model_type", "size", "\x1b]0;t\x07", "", f"{key}x"))
            holder[name] = copy.deepcopy(random.choice(VALUES))
        elif kind < 0.93:
            other, index = random.choice(places)
            holder[key] = copy.deepcopy(other[index] if other is not holder else random.choice(VALUES))
        elif type(holder[key]) in (int, float):
            holder[key] = random.choice((-holder[key], holder[key] + 1, holder[key] * 10**6, str(holder[key])))
        elif isinstance(holder[key], str):
            holder[key] += random.choice(("\0", "\n", "/..", "é", ".0"))
    return found


def changed_text(content: bytes, random: Random) -> bytes:
    """Return JSON with values or characters changed."""
    try:
        value = json.loads(content)
    except ValueError:
        return bits(content, random)
    return bits(content, random) if random.random() < 0.2 else text_of(changed_json(value, random))


def changed_safetensors(content: bytes, random: Random) -> bytes:
    """Return a safetensors file with another header, other metadata or other tensors."""
    if random.random() < 0.15:
        return bits(content, random, 3000)
    length = struct.unpack("<Q", content[:8])[0]
    header, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.pop("__metadata__", None)
    kind = random.random()
    if metadata and kind < 0.4:
        key = random.choice(sorted(metadata))
        metadata[key] = changed_text(metadata[key].encode(), random).decode("latin1")
    elif kind < 0.55:
        return _safetensors(text_of(changed_json(header, random)), values, random)
    else:
        header, values = _changed_tensors(header, values, random)
    return _safetensors(text_of({**({"__metadata__": metadata} if metadata else {}), **header}), values, random)


def _safetensors(header: bytes, values: bytes, random: Random) -> bytes:
    length = len(header) if random.random() > 0.02 else random.choice((0, 1, len(header) + 1, 2**63, 10**8))
    return struct.pack("<Q", length) + header + values


def _changed_tensors(header: dict[str, Any], values: bytes, random: Random) -> tuple[dict[str, Any], bytes]:
    """Return a valid file of other tensors."""
    items = [
        (name, entry["dtype"], entry["shape"], values[slice(*entry["data_offsets"])]) for name, entry in header.items()
    ]
    for _ in range(random.choice((1, 1, 2, 3))):
        number, kind = random.randrange(len(items)), random.random()
        name, dtype, shape, data = items[number]
        if kind < 0.25:
            items[number] = (random.choice(NAMES), dtype, shape, data)
        elif kind < 0.6:
            size = (
                random.choice(SHAPES)
                if random.random() < 0.5
                else tuple(max(0, n + random.choice((-1, 0, 1))) for n in shape)
            )
            items[number] = (name, dtype, size, _filled(size, 4))
        elif kind < 0.75 and len(items) > 1:
            del items[number]
        elif kind < 0.9:
            size = random.choice(SHAPES)
            items.append((random.choice(NAMES), "F32", size, _filled(size, 4)))
        else:
            dtype, width = random.choice(DTYPES)
            items[number] = (name, dtype, shape, (data * 2)[: len(data) // 4 * width])
    found, end = {}, 0
    for name, dtype, shape, data in items:
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    return found, b"".join(data for *_, data in items)


def _filled(shape: tuple[int, ...], width: int) -> bytes:
    count = 1
    for size in shape:
        count *= size
    return bytes(min(count, 100_000) * width)


def changed_archive(content: bytes, random: Random, change: Callable[[str, bytes, Random], bytes]) -> bytes:
    """Return a zip archive in which a member has another name or contents, is missing, or is there twice."""
    if random.random() < 0.2:
        return bits(content, random)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        method = archive.infolist()[0].compress_type
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number, kind = random.randrange(len(members)), random.random()
    pickles = [at for at, (name, _) in enumerate(members) if name.endswith("data.pkl")]
    if pickles and random.random() < 0.8:
        number, kind = pickles[0], 0.0
    name, data = members[number]
    if kind < 0.6:
        members[number] = (name, change(name, data, random))
    elif kind < 0.75:
        members[number] = (random.choice(("../x.npy", "/x.npy", "a\\b.npy", "constants.pkl", f"{name}x", *NAMES)), data)
    elif kind < 0.85:
        members.append((random.choice(members)[0], data))
    else:
        del members[number]
    written = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w", method) as archive:
        warnings.simplefilter("ignore")  # Names that are there twice.
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name or "x"), data, method)
    found = written.getvalue()
    return found if random.random() < 0.9 else found[:-2000] + bits(found[-2000:], random)


def changed_npy(name: str, data: bytes, random: Random) -> bytes:
    """Return an npy file with another header."""
    if random.random() < 0.4:
        return bits(data, random, 128)
    odd = ("(True,)", "(2.0,)", "None", "('x',)", "(" * 200 + "1" + ",)" * 200, f"({'-' * 6500}1,)", f"({'9' * 5000},)")
    shape = random.choice((*map(repr, SHAPES), *odd))
    dtype = random.choice(("<f4", "<f8", "|O", "|V2", ">f4", "<U3", "<M8[ns]", "f4,f4", "", "x", "|V0", "<u2"))
    header = f"{{'descr': {dtype!r}, 'fortran_order': {random.choice(('False', 'True', '1'))}, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data[128:]


def changed_pickle(name: str, data: bytes, random: Random) -> bytes:
    """Return a pickle in which opcodes are replaced, removed, repeated or added."""
    if not name.endswith(".pkl") or random.random() < 0.3:
        return bits(data, random)
    try:
        starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    except ValueError:
        return bits(data, random)
    chunks = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(random.choice((1, 1, 2, 4))):
        at, kind = random.randrange(len(chunks)), random.random()
        if kind < 0.3:
            globals_ = [index for index, chunk in enumerate(chunks) if chunk[:1] == b"c"]
            found = f"c{random.choice(GLOBALS)}\n".replace(" ", "\n").encode()
            chunks[random.choice(globals_ or [at])] = found
        elif kind < 0.55:
            numbers = [index for index, chunk in enumerate(chunks) if chunk[:1] in (b"K", b"M", b"J")]
            odd = (
                b"J\xff\xff\xff\xff",
                b"J\xff\xff\xff\x7f",
                b"K\0",
                b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
                b"\x88",
                b"N",
            )
            chunks[random.choice(numbers or [at])] = random.choice(
                (*odd, b"\x8a\xff" + b"\xff" * 254 + b"\x7f", b")", b"}")
            )
        elif kind < 0.7 and len(chunks) > 1:
            del chunks[at]
        elif kind < 0.8:
            chunks.insert(at, random.choice(chunks))
        elif kind < 0.9:
            chunks.insert(at, random.choice(OPCODES))
        else:
            text = random.choice(NAMES).encode()
            chunks[at] = b"X" + struct.pack("<I", len(text)) + text
    return b"".join(chunks)


def changed_legacy(content: bytes, random: Random) -> bytes:
    """Return a torch file of before the zip format with one of its five pickles changed."""
    stream, pickles = io.BytesIO(content), []
    for _ in range(5):
        start = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        pickles.append(content[start : stream.tell()])
    number = random.choice((0, 1, 2, 3, 3, 3, 4))
    pickles[number] = changed_pickle(".pkl", pickles[number], random)
    rest = content[stream.tell() :]
    return b"".join(pickles) + (rest if random.random() < 0.8 else bits(rest, random, 64))


def changed_folder(files: Files, random: Random) -> Files:
    """Return a folder with one of its JSON files changed, or a file of weights."""
    found = dict(files)
    named = [name for name in files if name.endswith(".json")]
    name = random.choice(named if named and random.random() < 0.85 else sorted(files))
    if name.endswith(".json"):
        found[name] = changed_text(files[name], random)
    elif name.endswith(".safetensors"):
        found[name] = changed_safetensors(files[name], random)
    elif name == ".metadata":
        found[name] = changed_pickle("data.pkl", files[name], random)
    else:
        found[name] = bits(files[name], random, 4000)
    return found


def changed_lines(content: bytes, random: Random) -> bytes:
    """Return lines of JSON with one of them changed, removed or repeated."""
    lines = content.splitlines()
    at, kind = random.randrange(len(lines)), random.random()
    if kind < 0.7:
        lines[at] = changed_text(lines[at], random)
    elif kind < 0.85:
        del lines[at]
    else:
        lines.insert(at, lines[at])
    return b"\n".join(lines)


def changed_result(files: Files, random: Random) -> Files:
    """Return a folder of embeddings with its manifest, a record or a shard changed."""
    found = dict(files)
    name = random.choice(sorted(files))
    data = files[name]
    if name.endswith(".json"):
        found[name] = changed_text(data, random)
    elif name.endswith(".jsonl"):
        found[name] = changed_lines(data, random)
    elif name.endswith(".npy"):
        found[name] = changed_npy(name, data, random)
    elif name.endswith(".safetensors"):
        found[name] = changed_safetensors(data, random)
    else:
        found[name] = bits(data, random, random.choice((200, None)))
    return found


def changed_name(names: tuple[str, ...], random: Random) -> str:
    """Return a name or an address with characters changed, removed or repeated."""
    found = random.choice(names)
    odd = (
        *NAMES,
        *(value for value in VALUES if isinstance(value, str)),
        "%00",
        "[",
        "@",
        "://",
        "\x85",
        "CON",
        "..",
        "\udc80",
    )
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(found) + 1)
        end = min(len(found), at + random.choice((0, 0, 1, 3, 20)))
        found = found[:at] + random.choice((*odd, found[at:end] * 2)) + found[end:]
    return found


def changed_tar(content: bytes, random: Random) -> bytes:
    """Return a tar archive with its headers changed."""
    at = random.randrange(0, len(content), 512)
    return content[:at] + bits(content[at : at + 512], random, 512) + content[at + 512 :]
