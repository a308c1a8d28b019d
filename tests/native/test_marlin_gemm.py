"""The marlin_gemm family: which kernel and how many blocks, that every product is computed once, refusals."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ._tensors import Tensor

OPS = ["gptq_marlin_gemm"]
UINT4, UINT4B8, UINT8B128, FLOAT8 = 1125899906843648, 1125899907892224, 1125899923621888, 2814749767172868
AUTO, GENERIC, SM90 = range(3)  # paths
IDS = {0: UINT4B8, 1: UINT8B128, 2: FLOAT8}  # by the heuristics' weight type
H200, RTX_5090 = (132, 232448), (170, 101376)  # multiprocessors, bytes of shared memory of a block
GPUS = st.sampled_from([H200, RTX_5090, (108, 166912), (84, 101376)])
QWEN3_32B = ((10240, 5120), (5120, 8192), (51200, 5120), (5120, 25600))
SHORT = QWEN3_32B[:2]  # of whose tiles a block has less than 2048 rows


@settings(deadline=None, max_examples=300)
@given(
    m=st.integers(1, 300) | st.integers(1, 20_000),
    n=st.integers(1, 300).map(lambda x: 64 * x),
    k=st.integers(1, 200).map(lambda x: 128 * x),
    weight=st.integers(0, 2),
    group=st.sampled_from([0, 32, 64, 128]),
    gpu_of_choice=GPUS,
)
def test_the_choice_fits(
    native: Any, m: int, n: int, k: int, weight: int, group: int, gpu_of_choice: tuple[int, int]
) -> None:
    multiprocessors, shared_memory = gpu_of_choice
    shape, m_tiles, n_tiles, partition, blocks, shared, is_split = native.marlin_gemm.choose(
        m, n, k, weight, False, group, multiprocessors, shared_memory
    )
    _, of_weight, is_act_order, tile_m, unit, width, shape_shared, _ = native.marlin_gemm.shapes[shape]
    assert (of_weight, is_act_order) == (weight, False)
    assert (m_tiles - 1) * tile_m < m <= m_tiles * tile_m
    assert (n_tiles - 1) * width < n <= n_tiles * width
    assert partition.tile_units * unit == k
    assert partition.tiles == m_tiles * n_tiles
    assert shared == shape_shared <= shared_memory
    assert 1 <= blocks <= min(multiprocessors, partition.tiles if partition.is_whole else partition.length())
    assert is_split == (not partition.is_whole and blocks not in (1, partition.tiles))
    if m_tiles > 1:  # no larger tile of these weights, but for the one that has to pay
        tiles = {s[3] for s in native.marlin_gemm.shapes if s[1] == weight}
        assert tile_m == max(tiles) or (tile_m, max(tiles)) == (64, 128)
    else:  # no smaller one that would do
        assert not any(m <= s[3] < tile_m for s in native.marlin_gemm.shapes if s[1:3] == (weight, False))


@settings(deadline=None, max_examples=300)
@given(
    listed=st.integers(1, 60),
    tile_units=st.integers(1, 40),
    cost=st.integers(0, 9),
    waves=st.integers(0, 3),
    blocks=st.integers(1, 300),
)
def test_every_unit_of_the_list_belongs_to_one_block(
    native: Any, listed: int, tile_units: int, cost: int, waves: int, blocks: int
) -> None:
    """Blocks have consecutive units; who begins a tile waits for all that have more of it."""
    blocks = min(blocks, listed * (tile_units + cost))
    direct = waves * blocks
    tiles = direct + listed
    partition = native.marlin_gemm.Partition(tiles, tile_units, cost, direct, blocks)
    first = [partition.first(block) for block in range(blocks + 1)]
    assert (first[0], first[-1]) == (direct * tile_units, tiles * tile_units)
    assert first == sorted(first)
    for block, (begin, end) in enumerate(itertools.pairwise(first)):
        assert all(partition.block_of(unit) == block for unit in range(begin, end))
    for tile in range(direct, tiles):
        begins = partition.block_of(tile * tile_units)
        ends = partition.block_of((tile + 1) * tile_units - 1)
        # Each in between has a part to hand over, and no more than one of a tile that it did not begin.
        assert all(first[b] < first[b + 1] for b in range(begins, ends + 1))
        assert all(
            tile * tile_units < first[b] < (tile + 1) * tile_units for b in range(begins + 1, ends + 1)
        )


@given(
    listed=st.integers(0, 60),
    tile_units=st.integers(1, 10),
    waves=st.integers(0, 3),
    more=st.integers(0, 40),
    blocks=st.integers(1, 40),
)
def test_blocks_take_whole_tiles_in_turn_and_then_the_list(
    native: Any, listed: int, tile_units: int, waves: int, more: int, blocks: int
) -> None:
    if listed > 0:
        blocks = min(blocks, listed * tile_units)
        direct = waves * blocks
    else:
        direct = waves * blocks + more + 1
        blocks = min(blocks, direct)
    partition = native.marlin_gemm.Partition(direct + listed, tile_units, 0, direct, blocks)
    assert partition.is_whole == (listed == 0)
    had = []
    for block in range(blocks):
        begin, last = partition.begin(block), partition.first(block + 1)
        tile = block
        while begin < last:
            end = min(last, (begin // tile_units + 1) * tile_units)
            if begin < direct * tile_units:
                assert (begin, end) == (tile * tile_units, (tile + 1) * tile_units)
                tile += blocks
            else:
                assert tile >= direct
            had += range(begin, end)
            begin = partition.next(block, end)
        assert begin == last
    assert sorted(had) == list(range((direct + listed) * tile_units))


@settings(deadline=None, max_examples=300)
@given(tiles=st.integers(1, 60), sharers=st.integers(2, 14), more=st.integers(0, 100), lead=st.integers(0, 6))
def test_sharers_of_a_tile_have_units_of_no_other(
    native: Any, tiles: int, sharers: int, more: int, lead: int
) -> None:
    tile_units = sharers**2 + more
    partition = native.marlin_gemm.Partition.even(tiles, tile_units, sharers, lead)
    lead = min(lead, tile_units // 4)
    assert partition.blocks == tiles * sharers
    first = [partition.first(block) for block in range(partition.blocks + 1)]
    assert first[::sharers] == [tile * tile_units for tile in range(tiles + 1)]
    for block, (begin, end) in enumerate(itertools.pairwise(first)):
        expected = (tile_units - lead) / sharers + (lead if block % sharers == 0 else 0)
        assert abs(end - begin - expected) <= sharers / 2 + 0.5
        assert all(partition.block_of(unit) == block for unit in range(begin, end))


@settings(max_examples=1000)
@given(x=st.integers(0, 2**31 - 1), by=st.integers(1, 2**31 - 1) | st.integers(1, 1000))
def test_divisors_divide(native: Any, x: int, by: int) -> None:
    for value in (x, x // by * by, max(x // by * by - 1, 0)):
        assert native.marlin_gemm.divide(value, by) == value // by


@given(teams=st.sampled_from([1, 2, 4]), pieces=st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_teams_share_evenly(native: Any, teams: int, pieces: list[int]) -> None:
    done = [0] * teams
    before = 0
    for units in pieces:
        bounds = [native.marlin_gemm.team_unit(team, teams, before, units) for team in range(teams + 1)]
        assert (bounds[0], bounds[-1]) == (0, units)
        for team, (begin, end) in enumerate(itertools.pairwise(bounds)):
            assert begin <= end
            done[team] += end - begin
        before += units
    assert max(done) - min(done) <= 1


@given(m_tiles=st.integers(1, 40), n_tiles=st.integers(1, 40))
def test_every_tile_is_numbered_once(native: Any, m_tiles: int, n_tiles: int) -> None:
    found = {native.marlin_gemm.tile_at(i, m_tiles, n_tiles) for i in range(m_tiles * n_tiles)}
    assert found == {(m, n) for m in range(m_tiles) for n in range(n_tiles)}


@pytest.mark.parametrize(("n", "k"), QWEN3_32B)
@pytest.mark.parametrize("m", [1, 2, 4, 8, 16])
def test_an_rtx_5090_is_kept_busy(native: Any, m: int, n: int, k: int) -> None:
    choice = native.marlin_gemm.choose(m, n, k, 0, False, 128, *RTX_5090)
    assert native.marlin_gemm.shapes[choice[0]][0] == ("u4_m8" if m <= 8 else "u4_m16")
    assert choice[4] == (160 if (n, k) in SHORT else 170)


@pytest.mark.parametrize(("n", "k"), QWEN3_32B)
@pytest.mark.parametrize("m", [1, 16])
def test_short_pieces_end_with_tiles(native: Any, m: int, n: int, k: int) -> None:
    """Where that leaves few multiprocessors idle."""
    for choice in (
        native.marlin_gemm.choose(m, n, k, 0, False, 128, *H200),
        native.marlin_gemm.choose_sm90(m, n, k, 128, H200[0]),
    ):
        partition, blocks = choice[3:5]
        begins = {partition.first(block) for block in range(blocks)}
        is_even = {tile * partition.tile_units for tile in range(partition.tiles)} <= begins
        assert (blocks, is_even) == ((120, True) if (n, k) in SHORT else (132, False))
    # 50 tiles would leave 20 of 170 multiprocessors idle.
    assert native.marlin_gemm.choose(m, 50 * 256, 5120, 0, False, 128, *RTX_5090)[4] == 170


@pytest.mark.parametrize(("m", "n", "k", "direct"), [
    (128, 51200, 5120, 0),
    (1024, 5120, 8192, 0),
    (1024, 5120, 25600, 132),  # the other 28 leave each block 5427 rows
    (2048, 5120, 25600, 264),  # of 320
    (1024, 10240, 5120, 132),  # of 320
    (4096, 5120, 25600, 640),  # 97 % of five waves
])  # fmt: skip
def test_how_many_tiles_are_taken_whole(native: Any, m: int, n: int, k: int, direct: int) -> None:
    for choice in (
        native.marlin_gemm.choose(m, n, k, 0, False, 128, *H200),
        native.marlin_gemm.choose_sm90(m, n, k, 128, H200[0]),
    ):
        assert choice[3].direct == direct


@pytest.mark.parametrize(("m", "n", "k", "group", "name"), [
    (17, 10240, 5120, 128, "u4_m32_long"),
    (32, 51200, 5120, 128, "u4_m32_long"),
    (32, 256, 5120, 128, "u4_m32_group"),
    (64, 51200, 5120, 128, "u4_m64_wide"),
    (64, 33280, 5120, 128, "u4_m64_group"),  # 65 tiles of 512 columns would be too few
    (64, 51200, 1024, 128, "u4_m64_group"),
    (64, 51200, 5120, 64, "u4_m64"),
    (64, 51200, 5120, 0, "u4_m64"),
    (128, 51200, 5120, 128, "u4_m128_long"),
    (128, 5120, 8192, 128, "u4_m64_group"),  # a block's ten units do not pay for the larger tile's sums
    (256, 5120, 25600, 128, "u4_m128_long"),
    (65, 64, 128, 128, "u4_m64_group"),
])  # fmt: skip
def test_which_tile_is_taken(native: Any, m: int, n: int, k: int, group: int, name: str) -> None:
    shape = native.marlin_gemm.choose(m, n, k, 0, False, group, *H200)[0]
    assert native.marlin_gemm.shapes[shape][0] == name


def test_the_deeper_pipeline_is_for_long_ways_in_large_shared_memory(native: Any) -> None:
    def name(m: int, n: int, k: int, gpu: tuple[int, int]) -> str:
        return str(native.marlin_gemm.shapes[native.marlin_gemm.choose(m, n, k, 0, False, 128, *gpu)[0]][0])

    assert name(1, 51200, 5120, H200) == "u4_m8_long"
    assert name(1, 10240, 5120, H200) == "u4_m8_group"
    assert name(1, 5120, 8192, H200) == "u4_m8_narrow"
    assert name(1, 5120, 25600, H200) == "u4_m8_narrow_long"
    assert name(1, 256, 5120, H200) == "u4_m8"
    assert name(9, 10240, 5120, H200) == "u4_m16_long"
    assert name(9, 256, 1024, H200) == "u4_m16"
    assert name(9, 51200, 5120, H200) == "u4_m16_long"
    assert name(9, 51200, 5120, RTX_5090) == "u4_m16"
    assert name(64, 51200, 5120, RTX_5090) == "u4_m64_wide"


@settings(deadline=None, max_examples=200)
@given(
    m=st.integers(1, 300) | st.integers(1, 20_000),
    n=st.integers(1, 900).map(lambda x: 64 * x),
    k=st.integers(1, 200).map(lambda x: 128 * x),
    group=st.sampled_from([0, 32, 128]),
)
def test_the_choice_of_sm_90a_fits(native: Any, m: int, n: int, k: int, group: int) -> None:
    shape, m_tiles, n_tiles, partition, blocks, shared, is_split = native.marlin_gemm.choose_sm90(
        m, n, k, group, H200[0]
    )
    _, tokens, columns, shape_shared, _ = native.marlin_gemm.sm90_shapes[shape]
    assert (m_tiles - 1) * tokens < m <= m_tiles * tokens
    assert (n_tiles - 1) * columns < n <= n_tiles * columns
    assert (partition.tiles, partition.tile_units) == (m_tiles * n_tiles, k // 128)
    assert shared == shape_shared <= H200[1]
    assert 1 <= blocks <= min(H200[0], partition.tiles if partition.is_whole else partition.length())
    assert is_split == (not partition.is_whole and blocks not in (1, partition.tiles))


@given(blocks=st.integers(1, 132), flat=st.sampled_from([4, 16, 31]))
def test_every_part_is_added_once_by_a_block_before(native: Any, blocks: int, flat: int) -> None:
    """Children know their parent and which of its flags is theirs; flags fit 32 bits; the first gets all."""
    added = {place: {place} for place in range(blocks)}
    for place in reversed(range(blocks)):
        for child in itertools.count():
            to = native.marlin_gemm.child_of(place, child, blocks, flat)
            if to == 0:
                break
            assert place < to < blocks
            assert child < 31
            assert native.marlin_gemm.parent_of(to, blocks, flat) == (place, child)
            assert added[place].isdisjoint(added[to])
            added[place] |= added[to]
    assert added[0] == set(range(blocks))


@given(
    tiles=st.integers(1, 60),
    tile_units=st.integers(1, 40),
    blocks=st.integers(1, 132),
    flat=st.sampled_from([4, 16, 31]),
)
def test_a_block_has_children_in_its_last_tile_alone(
    native: Any, tiles: int, tile_units: int, blocks: int, flat: int
) -> None:
    """So that the one word of flags of a block is of one tile, and may be cleared when that is added up."""
    blocks = min(blocks, tiles * (tile_units + 2))
    partition = native.marlin_gemm.Partition(tiles, tile_units, 2, 0, blocks)
    for block in range(blocks):
        begin, end = partition.first(block), partition.first(block + 1)
        if begin == end:
            continue
        for tile in range(begin // tile_units, (end - 1) // tile_units):  # all but the last
            first = partition.block_of(tile * tile_units)
            sharers = partition.block_of((tile + 1) * tile_units - 1) - first + 1
            assert native.marlin_gemm.child_of(block - first, 0, sharers, flat) == 0


@pytest.mark.parametrize(("m", "n", "k", "group", "name"), [
    (9, 2560, 5120, 128, "u4_m16_narrow"),
    (16, 5120, 17408, 128, "u4_m16_narrow"),
    (16, 5120, 25600, 128, "u4_m16_group"),  # a block's 61 units of all tokens draw too much power
    (32, 5120, 8192, 128, "u4_m32_narrow"),
    (32, 5120, 25600, 128, "u4_m32_group"),
    (16, 10240, 5120, 128, "u4_m16_group"),
    (16, 51200, 5120, 128, "u4_m16_group"),
    (17, 10240, 5120, 128, "u4_m32_group"),
    (17, 10240, 5120, 64, "u4_m32"),
    (32, 10240, 5120, 0, "u4_m32"),
    (33, 51200, 5120, 128, "u4_m64"),
    (128, 51200, 5120, 128, "u4_m128"),
    (128, 5120, 8192, 128, "u4_m64"),  # a block's ten units do not pay for the larger tile's sums
    (4096, 5120, 8192, 128, "u4_m128"),
])  # fmt: skip
def test_which_tile_sm_90a_takes(native: Any, m: int, n: int, k: int, group: int, name: str) -> None:
    shape = native.marlin_gemm.choose_sm90(m, n, k, group, H200[0])[0]
    assert native.marlin_gemm.sm90_shapes[shape][0] == name
    assert native.marlin_gemm.prefers_sm90_path(m, group)


def test_who_has_the_path_of_sm_90a(native: Any) -> None:
    for m, group in ((8, 128), (16, 64), (16, 0)):
        assert not native.marlin_gemm.prefers_sm90_path(m, group)
    has_path = native.marlin_gemm.has_sm90_path
    assert has_path(90, 0, False)
    assert not any(has_path(capability, 0, False) for capability in (80, 89, 100, 120))
    assert not has_path(90, 1, False)
    assert not has_path(90, 0, True)


def arguments(
    weight: int, *, m: int = 3, n: int = 256, k: int = 1024, groups: int = 8, dtype: str = "bfloat16",
    has_order: bool = False, a_address: int = 0x8000, path: int = AUTO
) -> list[Any]:  # fmt: skip
    bits = 4 if weight == 0 else 8
    order = Tensor(k, dtype="int32") if has_order else None
    return [
        Tensor(m, k, dtype=dtype, address=a_address),
        Tensor(m, n, dtype=dtype),
        Tensor(k // 16, n * bits // 2, dtype="int32"),
        Tensor(groups, n, dtype=dtype),
        *(None, order, order, Tensor(170, dtype="int32"), None),
        *(IDS[weight], m, n, k, path),
    ]


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    """Arguments that lead to each kernel that the op can launch."""
    del native, op
    for dtype in ("bfloat16", "float16"):
        for weight in IDS:
            for m in (1, 12, 20, 100):
                yield arguments(weight, m=m, dtype=dtype, path=GENERIC)
            if weight != 2:
                yield arguments(weight, has_order=True, dtype=dtype)
        yield arguments(0, dtype=dtype, a_address=0x8002)
        for m in (20, 50):  # groups of 128 rows have their own
            yield arguments(0, m=m, groups=16, dtype=dtype, path=GENERIC)
        for m, n in (  # deeper
            *((1, 10240), (1, 51200), (12, 10240), (12, 51200)),
            *((20, 51200), (50, 51200), (200, 51200)),
        ):
            for groups in (40, 80):
                yield arguments(0, m=m, n=n, k=5120, groups=groups, dtype=dtype, path=GENERIC)
        for k in (8192, 25600):  # narrow
            yield arguments(0, m=1, n=5120, k=k, groups=k // 128, dtype=dtype)
        for n in (256, 10240):  # sm_90a has its own
            yield arguments(0, m=9, n=n, dtype=dtype)
        yield arguments(0, m=17, dtype=dtype)
        for m, groups in ((17, 40), (17, 80), (33, 40), (200, 40)):
            yield arguments(0, m=m, n=51200, k=5120, groups=groups, dtype=dtype)
        yield arguments(0, m=33, dtype=dtype, a_address=0x8002)


@pytest.mark.parametrize(
    ("m", "stride", "launches"), [(3, 1 << 24, 1), (3, (1 << 24) + 8, 2), (1, 1 << 25, 1)]
)
def test_rows_too_far_apart_are_copied_first(gpu: Any, m: int, stride: int, launches: int) -> None:
    values = arguments(0, m=m)
    values[0] = Tensor(m, 1024, strides=[stride, 1])
    gpu.torch.call(OPS[0], values)
    assert len(gpu.driver.launches()) == launches


@pytest.mark.parametrize("groups", [1, 8, 16, 32])
@pytest.mark.parametrize("n", [64, 256])
def test_zero_points_on_the_path_of_sm_90a(gpu: Any, n: int, groups: int) -> None:
    values = arguments(0, m=33, n=n, groups=groups)
    values[4] = Tensor(groups, n // 8, dtype="int32")
    values[9] = UINT4
    gpu.torch.call(OPS[0], values)
    assert [launch["kernel"] for launch in gpu.driver.launches()] == ["marlin_gemm_sm90_bf16_u4_m64"]


def test_nothing_is_launched_for_no_rows(gpu: Any) -> None:
    gpu.torch.call(OPS[0], arguments(0, m=0))
    assert gpu.driver.launches() == []


REFUSED: list[tuple[int, Any, str]] = [
    (9, 5, "b_q_type: expected uint4, uint4b8, uint8b128 or float8_e4m3fn, got the type of id 5"),
    (11, 96, "size_n: expected a multiple of 64, got 96"),
    (12, 192, "size_k: expected a positive multiple of 128, got 192"),
    (10, 4, "a.size(0): expected 4 (size_m), got 3"),
    (0, Tensor(3, 1024, dtype="float32"), "a: expected float16 or bfloat16, got float32"),
    (1, Tensor(3, 256, strides=[257, 1]), "c: expected rows aligned to 4 bytes"),
    (
        2,
        Tensor(64, 512, dtype="int32", address=0x8004),
        "b_q_weight: expected data aligned to 16 bytes, got ",
    ),
    (2, Tensor(64, 256, dtype="int32"), "b_q_weight.size(1): expected 512 (size_n * bits / 2), got 256"),
    (
        3,
        Tensor(5, 256),
        "b_scales.size(0): expected 1 group, or groups of 32, 64 or 128 of size_k's 1024 rows",
    ),
    (4, Tensor(8, 32, dtype="int32"), "b_zeros: expected none with this b_q_type, got some"),
    (13, 9, "path: expected one that this GPU has for these weights, got 9"),
    (7, Tensor(170), "workspace: expected int32 (fixed by the op), got bfloat16"),
    (7, Tensor(170, dtype="int32", strides=[2]), "workspace: expected a contiguous tensor, got [170]"),
    (7, Tensor(2, dtype="int32"), "workspace: expected at least "),
    (5, Tensor(1024, dtype="int32"), "g_idx, perm: expected both or none, got one of them"),
    (8, Tensor(8), "b_bias.size(0): expected 256 (size_n), got 8"),
]


@pytest.mark.parametrize(("index", "value", "message"), REFUSED)
def test_refusals(gpu: Any, index: int, value: Any, message: str) -> None:
    values = arguments(0)
    values[index] = value
    with pytest.raises(RuntimeError, match=re.escape(f"gptq_marlin_gemm: {message}")):
        gpu.torch.call(OPS[0], values)
    assert gpu.driver.launches() == []
