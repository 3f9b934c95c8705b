// Which tile of a result comes when. Tiles that are worked on at the same time have neighbouring numbers, and should
// share rows and columns of the operands, which then stay in L2: they are numbered in strips, down each strip's columns.
#pragma once

constexpr int STRIP = 8;  // tiles, one above the other, that are numbered before those in the next column

struct TilePlace {
    int row, column;  // of the result: where the tile begins
};

// The place of tile `number` of ROWS x COLUMNS elements in a result of rows x columns.
template <int ROWS, int COLUMNS>
__device__ TilePlace tile_place(int number, int rows, int columns) {
    int tile_rows = (rows + ROWS - 1) / ROWS, tile_columns = (columns + COLUMNS - 1) / COLUMNS;
    int strip = number / (STRIP * tile_columns), within = number % (STRIP * tile_columns);
    int height = min(STRIP, tile_rows - strip * STRIP);
    return {(strip * STRIP + within % height) * ROWS, within / height * COLUMNS};
}
