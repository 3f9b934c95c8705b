// Counts what a launch moves: 32-byte sectors of global memory, wavefronts of shared memory, and the least of both.
//
// Lanes run one after the other here, so what the hardware issues as one request is put together afterwards: the k-th
// execution of an instruction by each lane of a warp. For a loop that lanes leave at different times this is what happens.
#include "machine.hpp"

#include <algorithm>
#include <unordered_map>

namespace sim {

namespace {

constexpr u32 kSectorBytes = 32;
constexpr u32 kBanks = 32;
constexpr u32 kBankBytes = 4;
constexpr u32 kWavefrontBytes = kBanks * kBankBytes;

enum Kind : u32 { kGlobalLoad, kGlobalStore, kGlobalAtomic, kShared };

struct Part {
    u64 address;
    u32 bytes, lane;
};

struct Request {
    Site site;
    Kind kind;
    std::vector<Part> parts;
};

struct Total {
    u32 site = 0, kind = 0;
    u64 requests = 0, units = 0, ideal = 0;
};

struct CountState {
    std::unordered_map<u64, Request> requests;  // by warp, site and occurrence
    std::unordered_map<u64, u32> occurrences;   // by thread and site

    void begin() {
        requests.clear();
        occurrences.clear();
    }
};
OfBlock<CountState> tallies;
std::unordered_map<u64, Total> totals;                    // of the launch, by site and kind
std::vector<Total> answered;

// How many different aligned pieces of `size` bytes the parts touch.
u64 pieces(const std::vector<Part>& parts, u32 size) {
    std::vector<u64> touched;
    for (const Part& part : parts) {
        for (u64 p = part.address / size; p <= (part.address + part.bytes - 1) / size; p++) touched.push_back(p);
    }
    std::sort(touched.begin(), touched.end());
    return static_cast<u64>(std::unique(touched.begin(), touched.end()) - touched.begin());
}

u64 rounded_up(u64 a, u64 b) { return (a + b - 1) / b; }

void count_global(Total& total, const Request& request) {
    total.units += pieces(request.parts, kSectorBytes);
    // Bytes that several lanes read count once: a broadcast needs one sector.
    total.ideal += rounded_up(pieces(request.parts, 1), kSectorBytes);
}

// A bank answers one 4-byte word at a time, to all lanes that want that word. Accesses of 8 and 16 bytes go in halves and
// quarters of the warp.
void count_shared(Total& total, const Request& request) {
    u32 bytes = request.parts[0].bytes;
    u32 lanes_at_once = std::min(kWarp, kWavefrontBytes / std::max(bytes, kBankBytes));
    for (u32 first = 0; first < kWarp; first += lanes_at_once) {
        std::vector<u64> words;
        for (const Part& part : request.parts) {
            if (part.lane < first || part.lane >= first + lanes_at_once) continue;
            for (u64 w = part.address / kBankBytes; w <= (part.address + part.bytes - 1) / kBankBytes; w++) words.push_back(w);
        }
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        u64 bank[kBanks] = {}, worst = 0;
        for (u64 word : words) worst = std::max(worst, ++bank[word % kBanks]);
        total.units += worst;
        total.ideal += rounded_up(words.size(), kBanks);
    }
}

}  // namespace

void count_new_launch() {
    totals.clear();
}

void count_access(Thread& self, bool shared, u64 address, u32 bytes, u32 access, Site site) {
    Kind kind = shared ? kShared : !(access & kWrite) ? kGlobalLoad : access & kRead ? kGlobalAtomic : kGlobalStore;
    // cp.async reads global and writes shared memory at one site: the space is part of the key.
    u64 site_and_space = static_cast<u64>(site) * 2 + shared;
    u64 occurrence = tallies->occurrences[site_and_space << 10 | self.index]++;
    Request& request = tallies->requests[(occurrence << 5 | self.warp) << 24 | site_and_space];
    request.site = site;
    request.kind = kind;
    request.parts.push_back({address, bytes, self.lane});
}

void count_end_of_block() {
    for (const auto& entry : tallies->requests) {
        const Request& request = entry.second;
        Total& total = totals[static_cast<u64>(request.site) * 4 + request.kind];
        total.site = request.site;
        total.kind = request.kind;
        total.requests++;
        if (request.kind == kShared) count_shared(total, request);
        else count_global(total, request);
    }
    tallies->begin();
}

// What Python reads after a launch that counted: one total for each site and kind.
extern "C" __attribute__((visibility("default"))) const Total* sim_counts(u32* how_many) {
    answered.clear();
    for (const auto& entry : totals) answered.push_back(entry.second);
    *how_many = static_cast<u32>(answered.size());
    return answered.data();
}

extern "C" __attribute__((visibility("default"))) const Place* sim_place(const Module* module, u32 site) {
    return &module->places[site];
}

}  // namespace sim
