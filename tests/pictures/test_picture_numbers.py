"""The numbers of pictures against other ways to compute them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kinds import KINDS as MODELS
from sklearn.decomposition import PCA
from small_models import randomise

import vit_hub
from vit_hub import VisionTransformer, ViTConfig
from vit_hub.model.config import Rope
from vit_hub.model.layers import AttentivePool
from vit_hub.model.rope import rotate
from vit_hub.pictures import (
    as_colours,
    cka,
    filter_components,
    mean_distance,
    outliers,
    patch_distances,
    position_similarity,
    position_table,
    relative_biases,
    resized_tables,
    rollout,
    rotation_similarity,
    token_components,
)
from vit_hub.pictures.heads import breadth, head_maps
from vit_hub.pictures.positions import by_distance
from vit_hub.pictures.resizing import neighbours_nearest
from vit_hub.pictures.rollouts import image_rollout, share_of_half
from vit_hub.pictures.subject import Subject, View, observe

RNG = np.random.default_rng(0)


def model_of(name: str) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(MODELS[name]).eval()
    randomise(model)
    return model


def image(model: VisionTransformer) -> torch.Tensor:
    return torch.randn(1, model.config.in_chans, *model.config.image_size, generator=torch.Generator().manual_seed(1))


def subject(model: VisionTransformer) -> Subject:
    return Subject("model", model, [View("image", image(model), np.zeros((*model.config.image_size, 3), np.uint8))])


def softmaxes(count: int, heads: int, tokens: int) -> list[torch.Tensor]:
    return list(torch.from_numpy(RNG.standard_normal((count, heads, tokens, tokens))).float().softmax(-1))


def test_rollout_is_the_product_of_averaged_attention_and_residuals() -> None:
    maps = softmaxes(4, 3, 7)
    wanted = np.eye(7)
    for attention in maps:
        step = attention.double().numpy().mean(axis=0) + np.eye(7)
        wanted = step / step.sum(axis=1, keepdims=True) @ wanted
    found = rollout(maps).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2])
def test_attention_distance_is_that_of_a_loop(frames: int) -> None:
    rows, columns = 2, 3
    count = frames * rows * columns
    (weights,) = softmaxes(1, 2, count)
    weights = weights * 0.7  # the rest goes to tokens that have no place
    wanted = np.zeros(2)
    for head in range(2):
        for query in range(count):
            y, x = divmod(query % (rows * columns), columns)
            share = weights[head, query] / weights[head, query].sum()
            for key in range(count):
                v, u = divmod(key % (rows * columns), columns)
                wanted[head] += float(share[key]) * ((y - v) ** 2 + (x - u) ** 2) ** 0.5 / count
    found = mean_distance(weights, patch_distances((rows, columns), frames))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "registers", "distilled", "map", "rope", "relative", "average"])
def test_one_pass_sees_what_the_model_computes(name: str) -> None:
    model = model_of(name)
    found, images, prefix = observe(model, image(model)), image(model), model.config.num_prefix_tokens
    with torch.no_grad():
        maps = model.attention_maps(images)
        tokens = torch.stack(model.forward_intermediates(images, reshape=False))[:, 0]
        last = model.forward_intermediates(images, [-1], reshape=False, norm=True)[0][0]
    assert found.grid == model.config.grid_size
    np.testing.assert_allclose(found.tokens, tokens.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.norms[:, prefix:], tokens.norm(dim=-1).numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.features, last.numpy(), atol=1e-5)
    assert found.rollout is not None
    np.testing.assert_allclose(found.rollout, rollout([each[0] for each in maps]).numpy(), atol=1e-6)
    if model.config.class_token:
        assert found.reader is not None
        np.testing.assert_allclose(found.reader, maps[-1][0, :, 0, prefix:].numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["map", "video"])
def test_weights_of_pooling_by_attention_give_what_is_pooled(name: str) -> None:
    model = model_of(name)
    pool, dim = model.attn_pool, model.config.embed_dim
    assert pool is not None
    tokens = torch.randn(2, 5, dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weights, x = pool.weights(tokens), tokens
        if isinstance(pool, AttentivePool):
            for block in pool.blocks:
                x = block(x)
            x = pool.norm1(x)
        values = pool.kv(x)[..., dim:].reshape(2, 5, pool.num_heads, -1)
        y = torch.einsum("bht,bthd->bhd", weights, values).reshape(2, 1, dim)
        y = pool.latent + y if isinstance(pool, AttentivePool) else pool.proj(y)
        y = y + pool.mlp(pool.norm(y))  # type: ignore[operator, misc]
        torch.testing.assert_close(y[:, 0], pool(tokens))


def test_filters_have_the_components_of_scikit_learn() -> None:
    model = model_of("plain")
    found = filter_components(model)
    rows = model.patch_embed.proj.weight.detach().double().flatten(1).numpy()
    wanted = PCA().fit(rows)
    count = len(rows) - 1  # the mean takes one
    np.testing.assert_allclose(found.shares[:count], wanted.explained_variance_ratio_[:count], rtol=1e-8)
    products = found.components[:count].reshape(count, -1) @ wanted.components_[:count].T
    np.testing.assert_allclose(np.abs(products), np.eye(count), atol=1e-6)
    flat = found.components.reshape(len(found.components), -1)
    assert (flat.max(axis=1) >= -flat.min(axis=1)).all()


def test_filters_of_videos_have_their_frames_side_by_side() -> None:
    model = model_of("video")
    tubelet, (high, wide) = model.patch_embed.proj.weight.shape[2], model.config.patch_size
    components = filter_components(model).components
    assert components.shape[1:] == (3, high, tubelet * wide)
    kernel = model.patch_embed.proj.weight.detach().double()
    rows = torch.cat([kernel[:, :, frame] for frame in range(tubelet)], dim=-1).flatten(1).numpy()
    first = PCA(1).fit(rows).components_[0]
    assert abs(first @ components[0].ravel()) == pytest.approx(1)


def test_tokens_have_the_components_of_scikit_learn_in_one_basis() -> None:
    tokens = [RNG.standard_normal((count, 8)) * np.arange(8, 0, -1) + 3 for count in (20, 30)]
    found = token_components(tokens)
    wanted = PCA(3).fit(np.concatenate(tokens))
    np.testing.assert_allclose(found.shares, wanted.explained_variance_ratio_, rtol=1e-8)
    for values, each in zip(found.values, tokens, strict=True):
        np.testing.assert_allclose(np.abs(values), np.abs(wanted.transform(each)), atol=1e-8)
    colours = as_colours(found.values)
    assert [each.shape for each in colours] == [(20, 3), (30, 3)]
    together = np.concatenate(colours)
    assert (together.min(), together.max()) == (0, 1)
    order = np.argsort(np.concatenate(found.values)[:, 0])
    assert (np.diff(together[order, 0]) >= 0).all()


@pytest.mark.parametrize("name", ["plain", "registers", "sincos"])
def test_position_similarity_is_the_cosine_of_rows(name: str) -> None:
    model = model_of(name)
    rows, columns = model.config.grid_size
    added = model.pos_embed if model.pos_embed is not None else model.pos_table
    assert added is not None
    table = added[0, model.config.num_prefix_rows :].detach().double()
    found = position_similarity(position_table(model), (rows, columns))
    for first in range(rows * columns):
        for second in range(rows * columns):
            wanted = torch.nn.functional.cosine_similarity(table[first], table[second], dim=0)
            places = (*divmod(first, columns), *divmod(second, columns))
            assert found[places] == pytest.approx(float(wanted), abs=1e-12)


def test_a_factorized_table_is_the_sum_of_rows_and_columns() -> None:
    model = VisionTransformer(ViTConfig(image_size=(48, 32), embed_dim=12, depth=1, num_heads=1, mlp_dim=8,
                                        pos_embed="factorized", pos_embed_prefix=False, pool="avg",
                                        class_token=False))  # fmt: skip
    assert model.pos_embed_y is not None
    assert model.pos_embed_x is not None
    table = position_table(model).reshape(3, 2, 12)
    np.testing.assert_allclose(
        table[2, 1], (model.pos_embed_y[0, 2] + model.pos_embed_x[0, 1]).detach().numpy(), atol=1e-7
    )


@pytest.mark.parametrize("name", ["rope", "stored periods", "learned rotations"])
def test_rotations_leave_what_a_rotated_query_and_key_have_in_common(name: str) -> None:
    model = model_of(name)
    config = model.config
    rows, columns = config.grid_size
    found = rotation_similarity(model)
    np.testing.assert_allclose([found[y, x, y, x] for y in range(rows) for x in range(columns)], 1, atol=1e-9)
    assert config.rope is not None
    wanted = np.zeros((rows * columns, rows * columns))
    for block in range(config.depth if config.rope.mixed else 1):
        cos, sin = model._positions(block, model._geometry(image(model))).rope or (None, None)
        assert cos is not None
        assert sin is not None
        cos, sin = (part[..., config.num_prefix_tokens :, :].detach().double() for part in (cos, sin))
        # The mean over all pairs of channels of q . k for unit queries is that over the basis vectors.
        for channel in range(config.head_dim):
            basis = torch.zeros(1, 1, rows * columns, config.head_dim, dtype=torch.float64)
            basis[..., channel] = 1
            turned = rotate(basis, cos, sin, config.rope.pairs)[0]
            wanted += (turned @ turned.mT).mean(dim=0).numpy() / config.head_dim
    wanted /= config.depth if config.rope.mixed else 1
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-6)


def test_rotations_depend_on_the_offset_alone() -> None:
    found = rotation_similarity(VisionTransformer(MODELS["rope"].replace(image_size=48)))
    np.testing.assert_allclose(found[0, 0, :3, :3], found[2, 2, 2:5, 2:5], atol=1e-6)
    means = by_distance(found)
    assert means[0] == pytest.approx(1)
    assert means[1] < 1


@pytest.mark.parametrize(
    "name", ["relative", "relative shared", "relative by a network", "relative shared, without class token"]
)
def test_relative_biases_are_those_that_attention_adds(name: str) -> None:
    model = model_of(name)
    config = model.config
    rows, columns = config.grid_size
    found, prefix = relative_biases(model), config.num_prefix_tokens
    geometry = model._geometry(image(model))
    for index, block in enumerate(model.blocks):
        bias = model._positions(index, geometry).bias
        if callable(bias):
            attn = block.attn
            bias = bias(attn.relative_position_bias_table if attn.rel_pos is None else attn.rel_pos)  # type: ignore[union-attr]
        assert isinstance(bias, torch.Tensor)
        between = bias.detach()[0, :, prefix:, prefix:].reshape(-1, rows, columns, rows, columns).numpy()
        mine = found[min(index, len(found) - 1)]
        # The query in row 1, column 2, and the key in row 3, column 0: two below, two to the left.
        np.testing.assert_allclose(mine[:, rows - 1 + 2, columns - 1 - 2], between[:, 1, 2, 3, 0], atol=1e-6)
        np.testing.assert_allclose(mine[:, rows - 1, columns - 1], between[:, 1, 1, 1, 1], atol=1e-6)


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased estimator as Song et al. 2012, eq. 5, write it."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    ones = np.ones(n)
    parts = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return float(parts - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def test_cka_is_the_quotient_of_unbiased_estimates() -> None:
    x, y = RNG.standard_normal((12, 5)) + 2, RNG.standard_normal((12, 9))
    y[:, :3] += x[:, :3]
    k, m = x @ x.T, y @ y.T
    wanted = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert cka([x], [y])[0, 0] == pytest.approx(wanted, abs=1e-10)


def test_cka_is_one_up_to_rotation_scale_and_shift_and_near_zero_without_relation() -> None:
    x = RNG.standard_normal((200, 16))
    rotation, _ = np.linalg.qr(RNG.standard_normal((16, 16)))
    # Unlike the biased estimate, that of unrelated values does not grow with their width.
    found = cka([x], [x, x @ rotation, 3 * x @ rotation + 5, RNG.standard_normal((200, 2000))])[0]
    np.testing.assert_allclose(found[:3], 1, atol=1e-10)
    assert abs(found[3]) < 0.1
    with pytest.raises(ValueError, match="same samples"):
        cka([x], [x[:100]])


def test_resized_tables_are_those_of_the_resized_model() -> None:
    model = vit_hub.load("vit-nano-digits")
    smaller, stored, larger = resized_tables(model, [(6, 6), (8, 8), (12, 12)])
    assert (smaller.image_size, stored.stored, larger.stored) == ((24, 24), True, False)
    for table, size in ((smaller, 24), (larger, 48)):
        resized = vit_hub.load("vit-nano-digits", image_size=size)
        wanted = position_similarity(position_table(resized), resized.config.grid_size)
        np.testing.assert_allclose(table.similarity, wanted, atol=1e-6)
        assert neighbours_nearest(table.similarity) > 0.6


def test_neighbours_are_the_nearest_of_a_smooth_table_and_not_of_a_shuffled_one() -> None:
    y, x = np.divmod(np.arange(36), 6)
    smooth = np.exp(-((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / 4.0)
    assert neighbours_nearest(smooth.reshape(6, 6, 6, 6)) == 1
    order = RNG.permutation(36)
    assert neighbours_nearest(smooth[order][:, order].reshape(6, 6, 6, 6)) < 0.5


def test_what_reads_the_image_follows_the_pooling() -> None:
    for name in ("plain", "map", "average"):
        seen = subject(model_of(name))
        (found,) = seen.observations
        assert found.rollout is not None
        prefix, config = seen.config.num_prefix_tokens, seen.config
        rows = found.rollout[:, prefix:]
        if name == "plain":
            wanted = rows[0]
        elif name == "map":
            assert found.reader is not None
            wanted = found.reader.mean(axis=0) @ rows
        else:
            wanted = rows[prefix:].mean(axis=0)
        np.testing.assert_allclose(image_rollout(seen, found).ravel(), wanted, rtol=1e-4)
        assert image_rollout(seen, found).shape == config.grid_size


def test_heads_cover_what_their_entropy_says() -> None:
    maps = np.zeros((3, 4, 4))
    maps[0], maps[1, 0, 0], maps[2, :2] = 1 / 16, 1, 1 / 8
    np.testing.assert_allclose(breadth(maps), [1, 1 / 16, 0.5])
    (found,) = head_maps(subject(model_of("map")))
    assert found.shape == (2, 4, 4)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), 1, rtol=1e-5)


def test_half_of_a_sum_and_tokens_that_stand_out() -> None:
    assert share_of_half(np.ones((2, 5))) == 0.5
    assert share_of_half(np.array([[9.0, 1, 1, 1, 1, 1, 1, 1, 1, 1]])) == 0.1
    assert outliers(np.array([1.0, 1, 1.1, 2.9, 3.2])).tolist() == [False, False, False, False, False]
    assert outliers(np.array([1.0, 1, 1, 2.9, 3.2])).tolist() == [False, False, False, False, True]


def test_a_rope_by_frames_has_a_similarity() -> None:
    config = MODELS["video"]
    assert isinstance(config.rope, Rope)
    found = rotation_similarity(VisionTransformer(config))
    assert found.shape == (*config.grid_size, *config.grid_size)
