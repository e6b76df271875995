"""Tokenizers equal their makers': llama.cpp's conformance pairs, SentencePiece itself, and cases made by hand."""

import json
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lutra import files
from lutra.errors import FileError
from lutra.files.model_file import ModelFile
from lutra.model.library_tokenizer import from_byte_level
from lutra.model.pieces import BYTE_OF, StreamDecoder, byte_level_bytes, sentence_piece_bytes
from lutra.model.pretokenizers import pre_tokenizer
from lutra.model.special import MARK, SpecialToken, SpecialTokens
from lutra.model.spm import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, SentencePiece
from lutra.model.tokenizer import Tokenizer

SIZES = {
    "context_length": 128, "embedding_length": 64, "feed_forward_length": 172, "block_count": 5,
    "attention.head_count": 8, "attention.head_count_kv": 4,
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 172,
    "num_hidden_layers": 5, "num_attention_heads": 8, "max_position_embeddings": 128, "vocab_size": 300,
}


def gguf_file(architecture: str = "llama", **tokenizer) -> ModelFile:
    metadata = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in SIZES.items()}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
    return ModelFile(Path("made.gguf"), "gguf", metadata, {})


def vocabulary_file(shared: Path, name: str) -> ModelFile:
    """Open a vocabulary without weights; GPT-2's is read as a llama, since only its tokenizer is wanted."""
    opened = files.open_model(shared / "data" / "tokenizers" / name)
    keys = {key: value for key, value in opened.metadata.items() if key.startswith("tokenizer.")}
    sizes = {f"llama.{key}": value for key, value in SIZES.items()}
    return ModelFile(opened.path, "gguf", {"general.architecture": "llama"} | sizes | keys, {})


def cases(shared: Path, name: str) -> list[tuple[str, list[int]]]:
    folder = shared / "data" / "tokenizers"
    texts = (folder / f"{name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = [list(map(int, line.split())) for line in (folder / f"{name}.out").read_text().splitlines()]
    return list(zip(texts, ids, strict=False))


@pytest.mark.parametrize("name", ["ggml-vocab-llama-spm.gguf", "ggml-vocab-gpt-2.gguf"])
def test_equals_llama_cpp(shared, name):
    tokenizer = Tokenizer.from_file(vocabulary_file(shared, name))
    pairs = cases(shared, name)
    assert len(pairs) >= 40
    for text, expected in pairs:
        assert tokenizer.encode(text, add_bos=False) == expected, repr(text)
        assert tokenizer.decode(expected) == text


def test_equals_sentencepiece(shared):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = shared / "data" / "models" / "stories260K"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tok512.model"))
    tokenizer = Tokenizer.from_file(files.open_model(folder / "stories260Ktok512.gguf"))
    story = next((shared / "data" / "text" / "tinystories_sample").glob("*.txt")).read_text()[:40_000]
    # this SentencePiece model folds white space before it tokenizes, which a GGUF file cannot say
    for line in [" ".join(part.split()) for part in story.split("\n")] + ["Zoë saw 🦙 and 漢字", "aaaa", "…"]:
        ids = reference.encode(line)
        assert tokenizer.encode(line, add_bos=False) == ids, repr(line)
        assert tokenizer.decode(ids) == reference.decode(ids)
    assert tokenizer.encode("a") == [1, *reference.encode("a")]
    assert tokenizer.eos_ids == (2,)


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁a", "ba", "<|x|>"]
TYPES = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 6, USER_DEFINED]
SCORES = [0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -2.0, -1.0, 0.0]
ID = {piece: token for token, piece in enumerate(PIECES)}


def sentence_piece(**changes) -> SentencePiece:
    return SentencePiece(**({"pieces": PIECES, "scores": SCORES, "types": TYPES} | changes))


def names(encoder: SentencePiece, text: str) -> list[str]:
    return [PIECES[token] for token in encoder.encode(text)]


def test_best_pair_first_leftmost_among_equals():
    assert names(sentence_piece(add_prefix=False), "aba") == ["ab", "a"]  # ab and ba score the same
    assert names(sentence_piece(), "ab") == ["▁", "ab"]  # ab (-1) before ▁a (-2)
    assert names(sentence_piece(), "aa") == ["▁a", "a"]


def test_unknown_characters_become_bytes():
    assert names(sentence_piece(), "é") == ["▁", "<0xC3>", "<0xA9>"]
    without_bytes = [NORMAL if kind == BYTE else kind for kind in TYPES]
    assert sentence_piece(types=without_bytes, unknown_id=0).encode("é") == [ID["▁"], 0, 0]


def test_control_pieces_are_not_joined_and_user_defined_ones_are_found():
    assert ID["<s>"] not in sentence_piece().encode("<s>")
    assert names(sentence_piece(), "a<|x|>b") == ["▁a", "<|x|>", "b"]


@given(st.text(alphabet="ab ▁", max_size=40))
def test_words_apart_equal_the_whole(text):
    encoder, whole = sentence_piece(), sentence_piece()
    whole._splits_words = False
    assert encoder.encode(text) == whole.encode(text)


def test_heap_equals_the_plain_rule():
    """Against the rule as it is worded: look at all neighbours, join the best, again."""
    rng = random.Random(5)
    words = sorted({"".join(rng.choices("abc", k=rng.randint(2, 5))) for _ in range(60)})
    pieces = ["<unk>", "a", "b", "c", *words]
    scores = [0.0, -50.0, -50.0, -50.0, *(float(-rng.randint(1, 20)) for _ in words)]  # many equal scores
    encoder = SentencePiece(pieces, scores, [UNKNOWN] + [NORMAL] * (len(pieces) - 1), add_prefix=False)

    def plain(text: str) -> list[int]:
        parts = list(text)
        while True:
            known = [(-scores[pieces.index(a + b)], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
                     if a + b in pieces]
            if not known:
                return [pieces.index(part) for part in parts]
            i = min(known)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    for _ in range(300):
        text = "".join(rng.choices("abc", k=rng.randint(1, 30)))
        assert encoder.encode(text) == plain(text), text


def test_long_text_without_spaces_is_fast():
    assert len(sentence_piece().encode("ab" * 50_000)) == 50_001


# --- streams ---------------------------------------------------------------------------------------------------------

def test_stream_holds_back_parts_of_a_character():
    stream = StreamDecoder([b"\xf0\x9f", b"\xa6", b"\x99!", b"\xe2\x82"].__getitem__)
    assert [stream.push(token) for token in range(4)] == ["", "", "\U0001f999!", ""]
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_stream_replaces_what_can_never_become_text():
    stream = StreamDecoder([b"\xff", b"\xe2", b"a"].__getitem__)
    assert [stream.push(token) for token in range(3)] == ["\ufffd", "", "\ufffda"]


@given(st.lists(st.binary(max_size=4), max_size=20))
def test_stream_joined_is_the_whole(parts):
    stream = StreamDecoder(parts.__getitem__)
    text = "".join([stream.push(i) for i in range(len(parts))]) + stream.finish()
    assert text == b"".join(parts).decode("utf-8", "replace")


def test_space_at_the_start_belongs_to_the_encoder():
    tokenizer = Tokenizer(sentence_piece(), [], None, False, ())
    ids = tokenizer.encode("ab a")
    assert tokenizer.decode(ids) == "ab a"
    assert tokenizer.decode([ID["</s>"], ID["▁a"]]) == "a"  # a control token has no text and takes no space
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) == " ab a"  # continuing a prompt, it is a space
    assert tokenizer.decode([-1, 10**6]) == ""


def test_alphabets():
    assert len(BYTE_OF) == len(set(BYTE_OF.values())) == 256
    assert byte_level_bytes("ĠtheĊ") == b" the\n"
    assert byte_level_bytes("<|漢|>") == "<|漢|>".encode()
    assert sentence_piece_bytes("▁the") == b" the"
    assert sentence_piece_bytes("<0x0A>") == b"\n"


# --- special tokens --------------------------------------------------------------------------------------------------

SPECIAL = [SpecialToken("<s>", 1), SpecialToken("<|im_end|>", 2), SpecialToken("<|im_end|>\n", 3)]


def test_split_takes_the_longest_name():
    assert list(SpecialTokens(SPECIAL).split("a<s><|im_end|>\nb<|im_end|>")) == ["a", 1, 3, "b", 2]
    assert list(SpecialTokens([]).split("a<s>")) == ["a<s>"]


def test_split_strips_where_the_token_says_so():
    tokens = SpecialTokens([SpecialToken("<m>", 9, strip_left=True), SpecialToken("<n>", 8, strip_right=True)])
    assert list(tokens.split("a  <m> b<n> \n c<n> <m>")) == ["a", 9, " b", 8, "c", 8, 9]


@given(st.text(alphabet="<s>|im_end\n" + MARK, max_size=60))
def test_shielded_text_has_no_special_token(text):
    tokens = SpecialTokens(SPECIAL)
    assert "".join(map(str, tokens.split(tokens.shield(text)))) == text.replace(MARK, "\ufffd")


def test_shield_breaks_overlapping_names():
    tokens = SpecialTokens([SpecialToken("<a>", 1), SpecialToken(">b", 2)])
    assert list(tokens.split(tokens.shield("<a>b"))) == ["<a>b"]


def test_a_name_that_holds_the_mark_is_no_name():
    tokens = SpecialTokens([SpecialToken("ab", 1), SpecialToken("a" + MARK, 2)])
    assert list(tokens.split(tokens.shield("ab") + "ab")) == ["ab", 1]


# --- folders: tokenizer.json -----------------------------------------------------------------------------------------

def byte_level(corpus: list[str], special: list[str]) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(corpus, trainer)
    return library


def folder_file(folder: Path, library: tokenizers.Tokenizer, **config) -> ModelFile:
    library.save(str(folder / "tokenizer.json"))
    return ModelFile(folder, "safetensors", CONFIG | config, {})


@pytest.fixture
def library() -> tokenizers.Tokenizer:
    return byte_level(["the cat sat on the mat"] * 3, ["<s>", "</s>", "<|im_end|>"])


def test_folder_reads_what_the_library_reads(tmp_path, library):
    library.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = Tokenizer.from_file(folder_file(tmp_path, library, eos_token_id=1))
    text = "the cat 🦙 sat\n\n on it"
    assert tokenizer.encode(text) == library.encode(text).ids
    assert tokenizer.encode(text)[0] == tokenizer.bos_id == 0
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_ids == (1, 2)  # declared, and the end-of-turn token of the vocabulary
    assert tokenizer.special_text(0) == "<s>" and tokenizer.special_text(None) == ""
    assert tokenizer.vocab_size == library.get_vocab_size()


def test_user_text_cannot_hold_special_tokens(tmp_path, library):
    tokenizer = Tokenizer.from_file(folder_file(tmp_path, library))
    ids = tokenizer.encode("the</s>cat")
    assert 1 not in ids and tokenizer.decode(ids) == "the</s>cat"
    parsed = tokenizer.encode("the</s>cat", parse_special=True)
    assert parsed.count(1) == 1 and tokenizer.decode(parsed) == "thecat"
    assert tokenizer.encode(tokenizer.shield("the</s>cat"), parse_special=True) == ids


def test_bos_only_where_the_model_wants_it(tmp_path, library):
    model_file = folder_file(tmp_path, library, bos_token_id=0)
    assert Tokenizer.from_file(model_file).encode("a")[0] != 0
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert Tokenizer.from_file(model_file).encode("a")[0] == 0
    assert Tokenizer.from_file(model_file).encode("a", add_bos=False)[0] != 0
    library.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    for stated, first in (("{}", True), ('{"add_bos_token": null}', True), ('{"add_bos_token": false}', False)):
        (tmp_path / "tokenizer_config.json").write_text(stated)
        tokenizer = Tokenizer.from_file(folder_file(tmp_path, library))
        assert (tokenizer.encode("a")[0] == 0) == first and tokenizer.bos_id == 0


def test_folder_with_sentencepiece_spelling(tmp_path):
    """Llama's tokenizer.json, in both spellings of the leading space, agrees with the library on every run."""
    vocabulary = {"<unk>": 0, "<s>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5, "<0xC3>": 6, "<0xA9>": 7}
    for scheme in ("first", "always", None):
        library = tokenizers.Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
        if scheme is None:
            library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        library.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        library.add_special_tokens([tokenizers.AddedToken("<s>", special=True, normalized=False)])
        tokenizer = Tokenizer.from_file(folder_file(tmp_path, library))
        assert tokenizer.encode("a é") == library.encode("a é").ids
        assert tokenizer.decode(tokenizer.encode("a é")) == "a é"
        text = "<s>a b<s>a"
        assert tokenizer.encode(text, parse_special=True) == library.encode(text).ids, scheme


def test_the_end_of_a_text_ends_a_generation_though_a_turn_is_declared(tmp_path):
    library = byte_level(["the cat"], ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    assert Tokenizer.from_file(folder_file(tmp_path, library, eos_token_id=1)).eos_ids == (1, 2)


def test_gguf_equals_tokenizer_json(tmp_path, library):
    """The same vocabulary, once as GGUF metadata and once as tokenizer.json."""
    data = json.loads(library.to_str())
    vocabulary = sorted(library.get_vocab(with_added_tokens=True).items(), key=lambda row: row[1])
    types = [CONTROL if token < 3 else NORMAL for _, token in vocabulary]
    merges = [" ".join(pair) for pair in data["model"]["merges"]]
    made = gguf_file(model="gpt2", pre="gpt-2", tokens=[piece for piece, _ in vocabulary], token_type=types,
                     merges=merges, bos_token_id=0, eos_token_id=1, add_bos_token=True)
    one, other = Tokenizer.from_file(made), Tokenizer.from_file(folder_file(tmp_path, library))
    for text in ["the cat's mat", "  12 345\n\tthe", "</s>", "漢字 é"]:
        assert one.encode(text) == [0, *other.encode(text)]
    assert one.eos_ids == (1, 2)


@pytest.mark.parametrize("pre, text, words", [
    ("llama-bpe", "a 1234 b'LL\n\n c", ["a", " ", "123", "4", " b", "'LL", "\n\n", " c"]),
    ("qwen2", "a 12\n c", ["a", " ", "1", "2", "\n", " c"]),
    ("gpt-2", "a 1234 b'll", ["a", " 1234", " b", "'ll"]),
    ("smollm", "a 12", ["a", " ", "1", "2"]),
    (None, "a b, 1234", ["a", " b", ",", " ", "123", "4"]),
    ("falcon", "a 1234!", ["a", " ", "123", "4", "!"]),
])
def test_pre_tokenizers_cut(pre, text, words):
    rule = pre_tokenizer(pre, "llama")
    encoder = from_byte_level(Path("made.gguf"), [*BYTE_OF, "ab"], ["a b"], {}, rule)
    cut = encoder._library.pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in cut] == words


# --- refusals --------------------------------------------------------------------------------------------------------

GOOD = {"model": "llama", "tokens": PIECES, "scores": SCORES, "token_type": TYPES, "bos_token_id": 1}


@pytest.mark.parametrize("change, message", [
    ({"tokens": None}, "tokens"), ({"tokens": [1] * 5}, "tokens"), ({"tokens": []}, "tokens"),
    ({"scores": [0.0]}, "scores"), ({"scores": None}, "scores"), ({"scores": [float("nan")] * len(PIECES)}, "scores"),
    ({"token_type": [1]}, "token_type"), ({"bos_token_id": 10**6}, "bos_token_id"), ({"model": "bert"}, "model"),
    ({"model": None}, "model"), ({"eos_token_id": -5}, "eos_token_id"), ({"add_bos_token": 3}, "add_bos_token"),
    ({"model": "gpt2", "pre": "nobody"}, "pre"), ({"model": "gpt2", "pre": "gpt-2"}, "merges"),
    ({"model": "gpt2", "pre": "gpt-2", "merges": ["ab"]}, "merges"),
    ({"model": "gpt2", "pre": "gpt-2", "merges": ["x y"]}, "tokenizer"),
])
def test_broken_gguf_vocabularies_are_refused(change, message):
    with pytest.raises(FileError, match=message):
        Tokenizer.from_file(gguf_file(**(GOOD | change)))


@pytest.mark.parametrize("text", [None, b"", b"{", b"\xff", b"[]", b'{"model": {"type": "BPE"}}'])
def test_broken_tokenizer_json_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "tokenizer.json").write_bytes(text)
    with pytest.raises(FileError, match="tokenizer.json"):
        Tokenizer.from_file(ModelFile(tmp_path, "safetensors", CONFIG, {}))


def test_other_kinds_are_refused(tmp_path):
    library = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece()
    with pytest.raises(FileError, match="decoder"):
        Tokenizer.from_file(folder_file(tmp_path, library))


def test_lone_surrogates_are_no_text():
    assert Tokenizer(sentence_piece(), [], None, False, ()).encode("\ud800") == sentence_piece().encode("?")
