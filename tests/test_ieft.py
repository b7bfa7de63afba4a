"""IEFT: against its authors' code, what the order of patches does to it, any grid, and its parameter-efficient form."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from built_models import built
from golden import ieft_weights as given
from golden.fill import inputs
from golden.ieft_model import golden_vilt, ours, shapes
from golden.vit_blocks import relative
from support import ROOT
from torch import nn

from petlbench.harness.contract_data import fake_batch
from petlbench.harness.encode import inference
from petlbench.methods import ieft
from petlbench.methods.backbones.base import Hidden, Tokens
from petlbench.methods.backbones.random_models import random_vilt
from petlbench.methods.backbones.shapes import vilt_shape_only
from petlbench.methods.base import Batch, MethodError, count
from petlbench.methods.ieft import Ieft
from petlbench.methods.ieft_ordered import IeftOrdered
from petlbench.methods.ieft_pe import IeftPe
from petlbench.methods.layers.gated_conv import GatedConv
from petlbench.methods.layers.transposed_block import HeadsError, TransposedBlock, heads_for
from petlbench.methods.pair import repeated
from petlbench.methods.recipe import Recipe
from petlbench.methods.registry import discover, load

GOLDEN = json.loads((ROOT / "tests" / "golden" / "ieft.json").read_text(encoding="utf-8"))
RELEASED = GOLDEN["counts"]["with_gradient"]
CPU = torch.device("cpu")
COUNTED = [(cls, name) for cls in (Ieft, IeftPe) for name in cls.variants]

pytestmark = pytest.mark.usefixtures("one_thread")


for cls in (Ieft, IeftOrdered, IeftPe):
    load(discover()[cls.__module__.rpartition(".")[2]])  # which gives it its name


def of(cls, **options):
    return cls(cls.Config(**options))


def stirred(module, std=0.3):
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def undropped(model):
    """In training mode, but without dropout, so that only the order of patches is left to chance."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def crossed(method, model, images, tokens):
    """(N, M) scores of all pairs, states computed once."""
    with torch.no_grad():
        image, text = method.image_states(model, images), method.text_states(model, tokens)
        rows, columns = len(images), len(tokens)
        text = {name: value.repeat(rows, *[1] * (value.ndim - 1)) for name, value in text.items()}
        return method.score(model, repeated(image, columns), text).view(rows, columns)


# --- against the authors' code ---


@pytest.fixture(scope="module", params=GOLDEN["runs"])
def run(request):
    """A model with the authors' weights, its inputs, and their results."""
    torch.set_num_threads(1)
    size, theirs = given.SIZES[request.param], GOLDEN["runs"][request.param]
    state = ours(given.weights(shapes(theirs["shapes"]), size["scale"]))
    vilt = golden_vilt(size)
    trunk = {n: t for n, t in state.items() if not n.startswith(ieft.ENHANCERS)}
    vilt.load_state_dict(trunk)
    images, tokens = given.pictures(size), Tokens(*given.captions(size))
    with torch.no_grad():
        each = len(tokens)
        vanilla = torch.stack([vilt.score_pairs(i.expand(each, -1, -1, -1), tokens) for i in images])
    method = Ieft()
    model = built(method, vilt)
    model.load_state_dict({n: t for n, t in state.items() if n in model.state_dict()})
    return SimpleNamespace(
        size=size, theirs=theirs, method=method, model=model, images=images, tokens=tokens, vanilla=vanilla
    )


@pytest.fixture
def given_orders(monkeypatch):
    monkeypatch.setattr(ieft, "content_orders", lambda images, *_: given.orders(len(images)))


def test_plain_vilt_equals_the_authors_blocks(run):
    assert relative(run.vanilla, run.theirs["vanilla"]) < 1e-5


@pytest.mark.usefixtures("given_orders")
def test_scores_equal_the_authors(run):
    assert relative(crossed(run.method, run.model, run.images, run.tokens), run.theirs["shuffled"]) < 1e-5
    assert relative(crossed(IeftOrdered(), run.model, run.images, run.tokens), run.theirs["raster"]) < 1e-5


@pytest.mark.usefixtures("given_orders")
def test_loss_and_gradients_equal_the_authors(run):
    wanted = run.theirs.get("gradient_norms")
    ids = torch.arange(len(run.images))
    batch = Batch(run.images, None, ids, ids, candidates=run.tokens)
    with torch.set_grad_enabled(wanted is not None):
        (loss,) = run.method.loss(run.model, batch).values()
    assert loss.item() == pytest.approx(run.theirs["loss"], rel=1e-5)
    if wanted is None:
        return
    parameters = dict(run.model.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    official = list(shapes(run.theirs["shapes"]))
    marks = ours({n: torch.full(s, float(i)) for i, (n, s) in enumerate(shapes(run.theirs["shapes"]).items())})
    squares = {}
    for name, gradient in gradients.items():  # query, key and value are one tensor there
        theirs = official[int(marks[name].flatten()[0])]
        squares[theirs] = squares.get(theirs, 0.0) + gradient.square().sum().item()
    assert {n: s**0.5 for n, s in squares.items()} == {
        n: pytest.approx(v, rel=1e-4, abs=1e-6) for n, v in wanted.items()
    }


def test_sizes_equal_the_authors():
    vilt = vilt_shape_only()
    for cls in (Ieft, IeftOrdered):
        assert cls().expected_trainable(vilt) == RELEASED == 84_049_837
    model = Ieft().build(vilt_shape_only())
    assert sum(p.numel() for p in model.parameters()) == RELEASED  # and nothing is held that does not run


# --- the layers ---


@pytest.mark.parametrize("patches, heads", [(9, 3), (16, 8), (49, 7)])
def test_a_transposed_block_is_a_transformer_layer_over_channels(patches, heads):
    block, x = stirred(TransposedBlock(patches, heads)), inputs((2, patches, 20), 0)
    layer = nn.TransformerEncoderLayer(
        patches, heads, 4 * patches, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    names = {"qkv.": "self_attn.in_proj_", "proj.": "self_attn.out_proj.", "fc1.": "linear1.", "fc2.": "linear2."}
    state = {}
    for name, tensor in block.state_dict().items():
        old = name.rpartition(".")[0] + "."
        state[name.replace(old, names.get(old, old))] = tensor
    layer.load_state_dict(state)
    expected = layer(x.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(block(x), expected, atol=1e-4)


def test_a_gated_convolution_sees_each_patch_and_its_neighbours():
    rows, columns, width, hidden = 2, 3, 6, 4
    layer, x = stirred(GatedConv(width, hidden, (rows, columns))), inputs((1, rows * columns, width), 0)
    normed = (x[0] - x[0].mean(1, keepdim=True)) / (x[0].var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    u = (normed * layer.norm.weight + layer.norm.bias) @ layer.project_in.weight.T
    expected = x[0].clone()
    for row in range(rows):
        for column in range(columns):
            near = torch.zeros(2 * hidden)
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    if 0 <= row + down < rows and 0 <= column + right < columns:
                        tap = layer.conv.weight[:, 0, 1 + down, 1 + right]
                        near += tap * u[(row + down) * columns + column + right]
            gated = F.gelu(near[:hidden]) * near[hidden:]
            expected[row * columns + column] += layer.project_out.weight @ gated
    assert torch.allclose(layer(x)[0], expected, atol=1e-5)


def test_layers_start_as_released_or_as_the_identity():
    torch.manual_seed(0)
    block, layer = TransposedBlock(144, 12), GatedConv(48, 64, (12, 12))
    for linear in (block.qkv, block.proj, block.fc1, block.fc2):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not linear.bias.any()
    for weight, fan_in in ((layer.project_in.weight, 48), (layer.conv.weight, 9), (layer.project_out.weight, 64)):
        assert weight.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.01)  # PyTorch's own start
    x = inputs((2, 9, 48), 0)
    for module in (TransposedBlock(9, 3, zero_init=True), GatedConv(48, 64, (3, 3), zero_init=True)):
        assert torch.equal(module(x), x)


def test_heads_divide_the_patches():
    assert {p: heads_for(p) for p in (1, 9, 16, 49, 144, 169)} == {1: 1, 9: 9, 16: 8, 49: 7, 144: 12, 169: 1}
    with pytest.raises(HeadsError, match=r"se_heads=12 does not divide the 49 patches.*such as 7"):
        TransposedBlock(49, 12)


# --- the order of patches ---


def test_what_the_modules_see_depends_on_the_order_and_plain_vilt_does_not():
    batch, method, vilt = fake_batch(random_vilt()), IeftOrdered(), random_vilt()
    text, image = method.text_states(vilt, batch.tokens), method.image_states(vilt, batch.images)
    turned = {"x": ieft.reordered(image["x"], torch.arange(8, -1, -1).expand(len(batch), 9))}
    assert torch.equal(turned["x"][:, 0], image["x"][:, 0]) and torch.equal(turned["x"][:, 1], image["x"][:, 9])
    plain = [vilt.head(vilt.joint.run(vilt.join(text["x"], text["mask"], i["x"]))) for i in (image, turned)]
    assert torch.allclose(*plain, atol=1e-5)
    model = built(method, vilt)
    stirred(getattr(model, ieft.ENHANCERS))
    ordered = [method.score(model, i, text) for i in (image, turned)]
    assert ((ordered[0] - ordered[1]).abs() > 1e-3).all()


def test_in_evaluation_each_picture_has_its_own_order():
    vilt = random_vilt()
    pixels = torch.from_numpy(given.integers((5, 3, 48, 48), 256, 0).numpy()).float()
    images = (pixels / 255 - 0.5) / 0.5
    orders = ieft.content_orders(images, 9, vilt.provenance)
    assert (orders.sort(1).values == torch.arange(9)).all()
    assert len(orders.unique(dim=0)) == 5
    assert torch.equal(ieft.content_orders(images[[3, 1]], 9, vilt.provenance), orders[[3, 1]])
    assert torch.equal(ieft.content_orders(images * (1 + 1e-6), 9, vilt.provenance), orders)
    assert not torch.equal(ieft.content_orders(images, 9, vilt.provenance, seed=1), orders)
    pixels[0, 0, 0, 0] = (pixels[0, 0, 0, 0] + 1) % 256
    other = ieft.content_orders((pixels / 255 - 0.5) / 0.5, 9, vilt.provenance)
    assert torch.equal(other[1:], orders[1:]) and not torch.equal(other[0], orders[0])
    tokens, same = vilt.tokenize(["a river"] * 5), vilt.tokenize(["a river"])
    scores = {}
    for seed in (0, 1):
        method = of(Ieft, order_seed=seed)
        model = built(method, random_vilt())
        scores[seed] = crossed(method, model, images, same)[:, 0]
        with inference(model, "fp32", CPU):
            assert torch.allclose(method.score_pairs(model, images, tokens), scores[seed], atol=1e-5)
    assert not torch.allclose(scores[0], scores[1], atol=1e-5)


def test_in_training_each_copy_is_shuffled_anew_unless_ordered():
    images, rows = inputs((1, 3, 48, 48), 0), 6
    for cls, distinct in ((Ieft, rows), (IeftOrdered, 1)):
        method = of(cls, dropout=0.0)
        model = undropped(built(method, random_vilt()))
        stirred(getattr(model, ieft.ENHANCERS)).train()
        tokens = model.tokenize(["a river"])
        with torch.no_grad():
            image, text = method.image_states(model, images), method.text_states(model, tokens)
            scores = method.score(model, repeated(image, rows), repeated(text, rows))
            gaps = (scores[:, None] - scores).abs() > 1e-4
        assert len({tuple(row) for row in gaps.tolist()}) == distinct


# --- the methods ---


@pytest.mark.parametrize("cls", [Ieft, IeftOrdered, IeftPe])
@pytest.mark.parametrize("resolution, blocks", [(16, 2), (48, 3), (112, 5)])
def test_any_grid_and_depth_works_and_the_last_block_is_cheap_and_exact(cls, resolution, blocks):
    vilt = random_vilt(resolution=resolution, blocks=blocks)
    method, batch = cls(), fake_batch(vilt)
    expected = method.expected_trainable(vilt)
    model = built(method, vilt)
    assert count(model, method.trainable(model)) == expected
    stirred(getattr(model, ieft.ENHANCERS), std=0.1)
    image, text = method.image_states(model, batch.images), method.text_states(model, batch.tokens)
    hidden = model.join(text["x"], text["mask"], image["x"])
    for index in range(model.joint.depth):
        if (parts := dict(getattr(model, ieft.ENHANCERS).items()).get(str(index))) is not None:
            words = hidden.x.shape[1] - vilt.patches
            hidden = hidden.with_x(torch.cat([hidden.x[:, :words], parts(hidden.x[:, words:])], 1))
        hidden = model.joint.run_block(index, hidden)
    scores = method.score(model, image, text)
    assert torch.allclose(scores, model.head(hidden), atol=1e-5)
    short = batch.tokens[:2].trimmed()
    trimmed = method.score(model, {"x": image["x"][:2]}, method.text_states(model, short))
    assert torch.allclose(trimmed, scores[:2], atol=1e-5)


@pytest.mark.parametrize(
    "blocks, depth, places", [(2, 2, ["1"]), (4, 2, ["1"]), (5, 3, ["1", "2"]), (12, 6, ["1", "2", "3"])]
)
def test_half_of_the_trunk_runs_and_the_rest_is_dropped(blocks, depth, places):
    model = built(Ieft(), random_vilt(blocks=blocks))
    assert model.joint.depth == depth
    assert list(getattr(model, ieft.ENHANCERS)) == places


def test_sizes_and_places_can_be_chosen():
    method = of(IeftOrdered, depth=3, enhance_at=(2, 0), se_heads=3, gdfn_hidden=5)
    vilt = random_vilt(blocks=4)
    expected = method.expected_trainable(vilt)
    model = built(method, vilt)
    assert count(model, method.trainable(model)) == expected
    enhancers = getattr(model, ieft.ENHANCERS)
    assert list(enhancers) == ["0", "2"]
    assert enhancers["0"].channels.heads == 3
    assert enhancers["2"].patches.project_out.weight.shape == (32, 5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depth": 9}, r"depth=9, but random-vilt has 3 blocks"),
        ({"enhance_at": (1, 1)}, r"enhance_at=\[1, 1\], expected different blocks from 0 to 1"),
        (
            {"enhance_at": (2,)},
            r"enhance_at=\[2\], expected different blocks from 0 to 1, the last of random-vilt that runs",
        ),
        ({"enhance_at": (-1,)}, r"enhance_at=\[-1\]"),
    ],
)
def test_blocks_that_do_not_run_are_refused(options, message):
    for ask in ("build", "expected_trainable"):
        with pytest.raises(MethodError, match=message):
            getattr(of(Ieft, **options), ask)(random_vilt())


def test_a_trunk_of_one_block_and_unknown_options_are_refused():
    assert "random-vilt has 1 block" in Ieft().refuse(random_vilt(blocks=1))
    for cls, option in ((IeftOrdered, "order_seed"), (IeftPe, "depth")):
        with pytest.raises(ValueError, match=option):
            of(cls, **{option: 2})


@pytest.mark.parametrize("cls, variant", COUNTED)
def test_variants_have_their_size(cls, variant):
    chosen = cls.variants[variant]
    method, vilt = of(cls, **chosen.method), vilt_shape_only()
    assert method.expected_trainable(vilt) == chosen.trainable
    model = method.build(vilt)
    assert count(model, method.trainable(model)) == chosen.trainable


def test_the_parameter_efficient_form_adds_what_its_parts_hold():
    vilt = vilt_shape_only()
    sizes = [of(IeftPe, gdfn_hidden=hidden).enhancers_size(vilt) for hidden in (64, 128, None)]
    assert sizes == [1_202_544, 1_648_368, 14_981_292]
    assert of(IeftPe, train_pooler=True).expected_trainable(vilt) == 1_202_544 + 769 + 590_592


def test_the_parameter_efficient_form_starts_as_vilt_and_leaves_the_trunk_frozen():
    vilt, method = random_vilt(blocks=5), IeftPe()
    batch = fake_batch(vilt)
    with torch.no_grad():
        before = vilt.score_pairs(batch.images, batch.tokens)
    model = built(method, vilt)
    assert model.joint.depth == 5
    with torch.no_grad():
        assert torch.allclose(method.score_pairs(model, batch.images, batch.tokens), before, atol=1e-5)
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {ieft.ENHANCERS, "rank_output"}
    stirred(getattr(model, ieft.ENHANCERS))
    with torch.no_grad():
        assert ((method.score_pairs(model, batch.images, batch.tokens) - before).abs() > 1e-4).all()


def test_only_patches_are_enhanced():
    model = built(IeftOrdered(), random_vilt())
    stirred(getattr(model, ieft.ENHANCERS))
    hidden = Hidden(inputs((2, 5 + 1 + 9, 32), 0))
    out = ieft._enhanced(model, 1, hidden).x
    assert torch.equal(out[:, :6], hidden.x[:, :6])
    assert ((out[:, 6:] - hidden.x[:, 6:]).abs().amax(2) > 1e-3).all()
    assert ieft._enhanced(model, 0, hidden) is hidden


def test_the_recipe_is_the_released_one():
    preset = Ieft.presets["paper"]
    assert of(Ieft, **preset.method).config.own_as_false
    recipe = Recipe.model_validate(preset.train)
    assert recipe.augmentation.randaugment.magnitude / 10 == 9 / 30
    assert (recipe.batch_size, recipe.epochs, recipe.betas, recipe.clip_norm) == (256, 50, (0.9, 0.98), 0.0)
