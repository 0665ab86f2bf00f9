"""Building, loading and running models."""

import json
import math

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from datasets.errors import InputError
from tests.parity.toys import RESNET, ToyFeed, resnet, vit
from trainers import checkpoint, schedule
from trainers import encoder as encoders
from trainers.batch import to_device
from trainers.checkpoint import Progress
from trainers.encoder import Encoder, Tokenizer
from trainers.model import EndlessModel, Model, TinyCLIP, TinyViT
from trainers.schedule import Training
from trainers.throughput import flops_per_sample, mfu
from trainers.weights.load import load_weights


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def saved(encoder: Encoder, folder):
    optimizer = schedule.optimizer(encoder, Training(epochs=1, batch_size=2, lr=1e-3, warmup_steps=0))
    return checkpoint.save(folder, encoder, optimizer, Progress(step=1, epoch=1))


def test_weights_depend_on_the_seed_alone_and_the_global_generator_stays():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, other = RESNET.build(3), RESNET.build(3), RESNET.build(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(a.model, b.model) and not same_weights(a.model, other.model)
    assert a.model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_any_open_clip_name_builds():
    spec = Model(name="ViT-S-32-alt")
    encoder = spec.build(0)
    assert spec.image_size == encoder.image_size == 224
    assert encoder.tokenize(["a"]).shape == (1, encoder.model.context_length)


def test_unknown_names_and_tags_say_what_there_is():
    with pytest.raises(InputError, match="RN5000.*RN50"):
        Model(name="RN5000").build(0)
    with pytest.raises(InputError, match="RN5000.*RN50"):
        _ = Model(name="RN5000").image_size
    with pytest.raises(InputError, match="no-such-tag.*openai"):
        Model(name="RN50", pretrained="no-such-tag").build(0)
    with pytest.raises(InputError, match="image_size"):
        TinyCLIP(image_size=40)


@pytest.mark.parametrize("fields", [
    {"embed_dim": -4}, {"vision_width": 0}, {"text_layers": -1}, {"context_length": 1}, {"vision_layers": (1, 1, 0, 1)}, {"text_heads": 0},
])  # fmt: skip
def test_sizes_that_no_model_has_are_refused(fields):
    [name] = fields
    for kind in (TinyCLIP, TinyViT):
        if not (kind is TinyViT and name == "vision_layers"):
            with pytest.raises(InputError, match=rf"{kind.__name__}.{name}(\[2\])? is .*; accepted: a whole number \(at least"):
                kind(**fields)
    with pytest.raises(InputError, match="TinyViT.patch_size is 0"):
        TinyViT(patch_size=0)


@pytest.mark.parametrize(("name", "tag", "fitting"), [
    ("RN50", "openai", "RN50-quickgelu"), ("ViT-B-32", "laion400m_e32", "ViT-B-32-quickgelu"),
    ("RN50-quickgelu", "openai", ""), ("ViT-B-32", "laion2b_s34b_b79k", ""),
])  # fmt: skip
def test_weights_are_not_run_with_another_activation_than_they_were_trained_with(name, tag, fitting):
    model = Model(name=name, pretrained=tag)
    if fitting:
        with pytest.raises(InputError, match=f"take '{fitting}'"):
            model.check()
    else:
        model.check()


def test_a_checkpoint_of_another_activation_is_refused(tmp_path):
    encoder = TinyCLIP().build(0)
    folder = saved(encoder, tmp_path)
    about = json.loads((folder / "open_clip_config.json").read_text())
    about["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    (folder / "meta.json").unlink()  # which has its checksum
    with pytest.raises(InputError, match="is of a model with QuickGELU, the experiment's is one without"):
        load_weights(TinyCLIP().build(1), folder)


def test_open_clip_loads_a_checkpoint_bit_for_bit(tmp_path):
    spec = Model(name="ViT-S-32-alt")
    encoder = spec.build(1)
    folder = saved(encoder, tmp_path)
    by_name, _, _ = open_clip.create_model_and_transforms("ViT-S-32-alt", pretrained=str(folder / checkpoint.WEIGHTS))
    by_folder, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert same_weights(by_name, encoder.model) and same_weights(by_folder, encoder.model)
    again = Model(name="ViT-S-32-alt", pretrained=str(folder)).build(2)
    assert same_weights(again.model, encoder.model)


def test_open_clip_loads_a_tiny_checkpoint_by_its_folder(tmp_path):
    encoder = resnet().eval()
    folder = saved(encoder, tmp_path)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    theirs.eval()
    assert same_weights(theirs, encoder.model)
    assert open_clip.get_tokenizer(f"local-dir:{folder}")(["a red thing"]).tolist() == encoder.tokenize(["a red thing"]).tolist()
    image = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    from torchvision.transforms.functional import to_pil_image

    pixels = torch.stack([preprocess(to_pil_image(picture.permute(2, 0, 1))) for picture in image])
    expected = torch.nn.functional.normalize(theirs.encode_image(pixels), dim=-1)
    torch.testing.assert_close(encoder.encode_image(image), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", ["state_dict", "bare", "module", "safetensors"])
def test_checkpoints_of_open_clip_load(tmp_path, form):
    source = resnet()
    with torch.no_grad():
        source.model.logit_scale.add_(1)
    state = source.model.state_dict()
    file = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pt")
    if form == "safetensors":
        save_file(state, file)
    elif form == "state_dict":
        torch.save({"epoch": 3, "name": "x", "state_dict": state, "optimizer": {"state": {}}}, file)
    else:
        torch.save({f"module.{k}": v for k, v in state.items()} if form == "module" else state, file)
    target = RESNET.build(9)
    load_weights(target, file)
    assert same_weights(target.model, source.model)


def test_a_checkpoint_of_another_architecture_is_refused_by_name(tmp_path):
    folder = saved(resnet(), tmp_path)
    with pytest.raises(InputError, match=r"open_clip_model.safetensors is of another architecture.*visual.*\["):
        load_weights(TinyCLIP(embed_dim=32).build(0), folder)
    with pytest.raises(InputError, match="another architecture"):
        load_weights(vit(), folder)


def test_unreadable_checkpoints_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_weights(resnet(), tmp_path / "missing.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="bad.safetensors cannot be read"):
        load_weights(resnet(), tmp_path / "bad.safetensors")
    torch.save({"state_dict": resnet()}, tmp_path / "code.pt")  # a pickled object: never unpickled
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "count.pt")
    for name in ("code.pt", "count.pt"):
        with pytest.raises(InputError, match=f"{name} cannot be read.*accepted are an epoch folder") as error:
            load_weights(resnet(), tmp_path / name)
        assert "weights_only" not in str(error.value)


def test_what_is_no_checkpoint_says_what_one_would_be(tmp_path):
    saved(resnet(), tmp_path / "stage")
    with pytest.raises(InputError, match="give one of its epoch folders: epoch_0001"):
        load_weights(resnet(), tmp_path / "stage")
    with pytest.raises(InputError, match="open_clip's tags are accepted where"):
        load_weights(resnet(), "openai")


def test_a_model_from_scratch_is_not_warned_of(caplog):
    vit_from_scratch = Model(name="ViT-S-32-alt").build(0)
    assert vit_from_scratch.image_size == 224 and "No pretrained weights" not in caplog.text


def test_forward_gives_unit_features_of_what_the_batch_holds():
    encoder = resnet().train()
    raw = ToyFeed().batch(0)
    out = encoder(to_device(raw, encoder, True))
    assert set(out) == {"image", "text", "image_aug", "text_aug", "logit_scale"}
    for name in ("image", "text", "image_aug", "text_aug"):
        assert out[name].shape == (8, 16) and out[name].dtype == torch.float32
        torch.testing.assert_close(out[name].norm(dim=1), torch.ones(8))
    assert set(encoder({"text": encoder.tokenize(["a"])})) == {"text", "logit_scale"}
    assert "logit_bias" in resnet(logit_bias=-10.0)(to_device(raw, encoder, False))


def test_precision_and_layout_change_little():
    encoder, raw = resnet().eval(), ToyFeed().batch(0)
    batch = to_device(raw, encoder, False)
    cpu = torch.device("cpu")
    plain = encoder.place(cpu, precision="fp32", channels_last=False)(batch)["image"]
    torch.testing.assert_close(encoder.place(cpu, channels_last=True)(batch)["image"], plain, atol=1e-5, rtol=1e-4)
    assert encoder.autocast is None, "auto stays in fp32 on a CPU"
    rough = encoder.place(cpu, precision="bf16")(batch)["image"]
    assert encoder.autocast is torch.bfloat16 and rough.dtype == torch.float32
    assert not torch.equal(rough, plain)
    assert (rough * plain).sum(1).min() > 0.99


def test_logit_scale_is_clamped():
    encoder = resnet()
    for value, expected in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        with torch.no_grad():
            encoder.model.logit_scale.fill_(value)
        encoder.clamp_logit_scale()
        assert encoder.model.logit_scale.item() == pytest.approx(expected)


def test_the_tokenizer_remembers_within_bounds(monkeypatch):
    calls = []

    def tokenize(captions):
        calls.extend(captions)
        return torch.tensor([[len(caption), 0] for caption in captions])

    monkeypatch.setattr(encoders, "CACHED_CAPTIONS", 3)
    remembering = Tokenizer(tokenize)
    assert remembering(["a", "bb", "a"]).tolist() == [[1, 0], [2, 0], [1, 0]]
    assert remembering(["bb", "a"]).tolist() == [[2, 0], [1, 0]] and calls == ["a", "bb"]
    assert remembering(["ccc", "dddd", "a"]).tolist() == [[3, 0], [4, 0], [1, 0]]
    assert len(remembering._seen) <= 3


def test_captions_that_are_too_long_keep_their_end_or_lose_it():
    clip = open_clip.SimpleTokenizer(context_length=6)
    kept, cut = (Tokenizer(kind(name="ViT-S-32-alt").cut(clip)) for kind in (Model, EndlessModel))
    captions = ["red", "red green blue grey", "red green blue grey red", "red green blue grey red green blue"]
    whole = [[clip.sot_token_id, *clip.encode(caption), clip.eot_token_id] for caption in captions]
    assert [len(tokens) for tokens in whole] == [3, 6, 7, 9]
    assert cut(captions).tolist() == [(tokens + [0] * 6)[:6] for tokens in whole]
    assert [row[-1] == clip.eot_token_id for row in kept(captions).tolist()] == [False, True, True, True]
    assert torch.equal(kept(captions[:2]), cut(captions[:2]))
    with pytest.raises(InputError, match="CLIP's own tokenizer"):
        EndlessModel(name="ViT-B-16-SigLIP").cut(lambda captions: None)


def test_arithmetic_is_counted():
    one, two = flops_per_sample(resnet()), flops_per_sample(resnet(), two_views=True)
    assert one > 1e6 and two == pytest.approx(2 * one, rel=0.01)
    assert mfu(1000, 1e9, 1e13) == pytest.approx(10)
