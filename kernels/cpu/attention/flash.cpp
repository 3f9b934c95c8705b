#include "attention.hpp"
#include "gemm.hpp"

// Scores are kept transposed, [key][query]: a vector holds sixteen queries, so that the maximum, the sum and the mask of
// a query stay in its lane, and no step works across lanes. Blocks are multiples of every register tile in use.
constexpr int64_t KEYS = 96, QUERIES = TILE_COLS;          // forward: 96 keys meet one panel of queries
constexpr int64_t KEYS_BACK = 48, QUERIES_BACK = 96;       // backward: 48 keys meet 96 queries
constexpr int64_t OUT_ROWS = 6;                            // rows of the tile that multiplies into HS columns
constexpr int64_t PADDED = 96;                             // T is padded to this in scratch
