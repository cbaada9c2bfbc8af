"""List and plan a corpus; prints seconds of both, and memory in MB: before, of the listing, and at the peak.

python tests/bench/plan_million.py AUDIO_DIR CACHE_DIR [MANIFEST]
"""

import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.build import feature_config, plan_shards
from pipeline.corpus import read_corpus
from pipeline.finish import plan_split
from pipeline.options import BuildOptions
from pipeline.provenance import read_provenance


def peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def main() -> None:
    """Do what a build does before the first worker starts."""
    options = BuildOptions(audio_dir=sys.argv[1], cache_dir=sys.argv[2], manifest=next(iter(sys.argv[3:]), None))
    config = feature_config(options)
    folder = Path(options.cache_dir) / config.folder_name
    folder.mkdir(parents=True)
    before, started = peak(), time.perf_counter()
    corpus = read_corpus(options)
    listing = corpus.clips
    listed = time.perf_counter()
    sources = read_provenance(folder, config)
    plan_split(options, listing, sources.match(listing, Path(options.audio_dir)), None, corpus.folds)
    plan_shards(folder, config, listing, sources, options)
    print(listed - started, time.perf_counter() - listed, before, listing.nbytes / 2**20, peak())
    folder.rmdir()


if __name__ == "__main__":
    main()
