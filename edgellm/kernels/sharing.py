"""How threads share out the tiles of a weight: most of them fixed, the last quarter on demand.

A thread that is slower than the others (a busy core, a smaller one) would make them all wait at the next
barrier. Fixed shares keep each thread's reads in one long stream; what is left goes to whoever is done first.
Which thread computes a tile changes nothing in its result.
"""

from __future__ import annotations

from edgellm.kernels.simd.scalar import atomic_add, helper

# Below so much for each thread all shares are fixed: asking costs more than waiting.
FEWEST_TILES = 16
FEWEST_BYTES = 512 << 10  # of weights, times the tokens that use them
CHUNKS = 4  # on demand, for each thread


@helper
def fixed_tiles(tiles: int, nbytes: int, threads: int) -> int:
    """How many tiles, from the first on, are in fixed shares. nbytes: of all tiles, times the tokens."""
    small = tiles < FEWEST_TILES * threads or nbytes < FEWEST_BYTES * threads
    return tiles if threads == 1 or small else tiles - tiles // 4


@helper
def chunk_tiles(tiles: int, fixed: int, threads: int) -> int:
    """Tiles that a thread takes at once of the others; even, for kernels that compute pairs."""
    return max(2, (tiles - fixed) // (2 * CHUNKS * threads) * 2)


@helper
def next_tiles(counter: int, tiles: int, fixed: int, threads: int) -> int:
    """The first tile of the caller's next chunk, or `tiles` if none is left.

    counter: address of an int64 of the op's own, 0 before its first call. In each call of an op a thread asks
    until it gets no more, so that the counter grows by the chunks and the threads, and the next call, which
    a barrier keeps apart, begins at a multiple of that.
    """
    if fixed == tiles:
        return tiles
    chunk = chunk_tiles(tiles, fixed, threads)
    chunks = (tiles - fixed + chunk - 1) // chunk
    taken = atomic_add(counter, 1) % (chunks + threads)
    return min(tiles, fixed + taken * chunk)
