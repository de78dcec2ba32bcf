"""Tiny untrained PLMs with a tokenizer of their own, saved as a real one is."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast, T5Config, T5Model

WORDS = (
    "this is a user gender female male and age occupation doctor writer movie title genre drama comedy sci-fi "
    "the terminator titanic avatar who has recently watched zero one two three four five six seven eight nine ten"
)


def prompts(count: int, seed: int = 0) -> list[str]:
    """Different texts of 3 to 30 words."""
    generator = torch.Generator().manual_seed(seed)
    words = WORDS.split()
    texts = []
    for number in range(count):
        length = int(torch.randint(2, 30, (), generator=generator))
        drawn = torch.randint(0, len(words), (length,), generator=generator)
        texts.append(" ".join(words[i] for i in drawn) + f" {number}")
    return texts


def save_bert(folder: Path, seed: int = 0, hidden: int = 32, layers: int = 2, positions: int = 512) -> Path:
    tokenizer = _wordpiece()
    vocabulary = tokenizer.get_vocab_size()
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    config = BertConfig(vocab_size=vocabulary, num_attention_heads=2, max_position_embeddings=positions, **sizes)
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **special)
    fast.save_pretrained(folder)
    return folder


def save_llama(folder: Path, seed: int = 0) -> Path:
    """A decoder whose tokenizer adds no special token and knows no padding."""
    tokenizer = _wordpiece(special=False)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), num_key_value_heads=2, eos_token_id=2, **sizes)
    torch.manual_seed(seed)
    LlamaModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]").save_pretrained(folder)
    return folder


def save_t5(folder: Path) -> Path:
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5Model(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=_wordpiece(), unk_token="[UNK]").save_pretrained(folder)
    return folder


def _wordpiece(special: bool = True) -> Tokenizer:
    # Written down: what a trainer finds differs from process to process, and the words' random rows with it.
    words = sorted({*WORDS.replace("-", " - ").split(), *(str(number) for number in range(100))})
    letters = sorted(set("".join(words)))
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
        pieces = [("[CLS]", cls), ("[SEP]", sep)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=pieces)
    return tokenizer
