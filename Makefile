# hyperfs: build, test, demo, bench. `make help` lists the targets.
PREFIX  ?= /usr/local
DESTDIR ?=
CC      ?= cc
CXX     ?= c++
VERSION := 0.2.0
Q := $(if $(V),,@)
comma := ,

# Objects for ThreadSanitizer do not mix with those for the others.
B := build$(if $(SAN),$(if $(findstring thread,$(SAN)),/tsan,/san),)
OPT ?= $(if $(SAN),-O1 -g -fno-omit-frame-pointer -fsanitize=$(SAN) -fno-sanitize-recover=undefined,-O3 -g)
# Costs no speed of the code that could be measured: `make bench-codec`.
HARDEN := $(if $(SAN),,-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 -fstack-protector-strong -fPIE)
HARDEN_LINK := $(if $(SAN),,-pie -Wl$(comma)-z$(comma)relro$(comma)-z$(comma)now)
WERROR := $(if $(CI),-Werror,)
WARN := -Wall -Wextra -Wconversion -Wno-sign-conversion -Wshadow -Wvla $(WERROR)

# Empty for other processors, which have the portable kernels only.
X86 := $(filter x86_64-%,$(shell $(CC) -dumpmachine))

PKGS := fuse3 libzstd jansson libxxhash nettle libseccomp
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS))
CPPFLAGS += -I. -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DFUSE_USE_VERSION=314 -DHYPERFS_VERSION='"$(VERSION)"'
# The codec's results are the same on every machine only if no multiply-add is fused; without the
# two others its loops stay scalar (neither changes a result).
CFLAGS_ALL = -std=c11 $(OPT) $(HARDEN) $(WARN) -ffp-contract=off -fno-trapping-math -fno-math-errno -pthread -MMD -MP $(PKG_CFLAGS) $(CFLAGS)
CXXFLAGS_ALL = -std=c++11 $(OPT) $(HARDEN) -Wall -Wextra $(WERROR) -MMD -MP $(CXXFLAGS)
LDLIBS_ZSTD = $(shell pkg-config --libs libzstd libxxhash nettle) -lm -pthread
LDLIBS_FUSE = $(shell pkg-config --libs fuse3 libseccomp)
LDLIBS_JSON = $(shell pkg-config --libs jansson)
LDLIBS_TEST = $(shell pkg-config --libs cmocka)

# Debian's names of what building, running and testing need, and of what `make lint` adds.
DEPS := build-essential pkg-config libfuse3-dev fuse3 libzstd-dev libjansson-dev libxxhash-dev \
        nettle-dev libseccomp-dev uthash-dev libkdtree++-dev libcmocka-dev python3 python3-venv attr \
        valgrind
DEPS_BENCH := liblz4-dev time
DEPS_BENCH_READ := squashfuse squashfs-tools util-linux
DEPS_LINT := clang-format mandoc shellcheck cppcheck
DEPS_FUZZ := clang llvm libclang-rt-14-dev

TOOLS := mkhyperfs hyperfs fsck.hyperfs dump.hyperfs
BIN   := $(TOOLS:%=$B/%)

CODEC_SRC := $(filter-out codec/kdtree.c,$(wildcard codec/*.c))
IMAGE_SRC := fs/error.c $(wildcard fs/image*.c) fs/checksum.c $(wildcard fs/checksum_*.c) fs/check.c fs/digest.c fs/trust.c \
             fs/writer.c fs/ui.c
MKFS_SRC  := $(wildcard mkhyperfs/*.c)
MOUNT_SRC := $(wildcard fs/mount*.c) fs/cache.c fs/readahead.c
FSCK_SRC  := $(wildcard fs/fsck*.c) fs/walk.c fs/json.c
DUMP_SRC  := $(wildcard fs/dump*.c) fs/walk.c fs/json.c
# The unit tests link with everything but the main programs; the k-d tree is their reference.
LIB_SRC   := $(CODEC_SRC) codec/kdtree.cpp $(IMAGE_SRC) fs/cache.c \
             $(filter-out mkhyperfs/main.c,$(MKFS_SRC))
TEST_SRC  := $(wildcard tests/unit/test_*.c)
# A fuzz target is a file tests/fuzz/fuzz_NAME.c; tests/fuzz/fuzz.h says what it needs.
FUZZ_NAMES := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_SRC   := $(addprefix tests/fuzz/,fuzz.c codecs.c image_parts.c image_edit.c image_mutate.c) \
              fs/walk.c fs/mount_xattr.c fs/mount_read.c
REPLAY_BIN := $(FUZZ_NAMES:%=$B/tests/replay_%)
SOURCES    = $(wildcard codec/*.[ch] codec/*.cpp fs/*.[ch] mkhyperfs/*.[ch] tests/unit/*.[ch] tests/faults/*.c \
                      tests/soak/*.c tests/fuzz/*.[ch] bench/*.[ch])
SCRIPTS    = .ci/run $(wildcard demo/*.sh scripts/*.sh bench/*.sh tests/*.sh)

obj = $(patsubst %,$B/obj/%.o,$(1))
CODEC_OBJ := $(call obj,$(CODEC_SRC))
IMAGE_OBJ := $(call obj,$(IMAGE_SRC))
TEST_BIN  := $(TEST_SRC:tests/unit/%.c=$B/tests/%)
FAULT_TOOLS := $B/tests/inject.so $B/tests/soak

# hyperfs-eval needs torch: it has an installation of its own.
MANPAGES    := $(filter-out man/hyperfs-eval.1,$(wildcard man/*.[0-9]))
COMPLETIONS := $(filter-out %/hyperfs-eval.bash,$(wildcard completions/*))
BINDIR       = $(DESTDIR)$(PREFIX)/bin
MANDIR       = $(DESTDIR)$(PREFIX)/share/man
COMPDIR      = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
EVALDIR      = $(PREFIX)/lib/hyperfs-eval

VENV := build/venv
# Of make soak and soak-memory.
SECONDS := 600
BENCH_READ := $B/bench/read $B/bench/nullfs $B/bench/synth
RUN_TESTS = HYPERFS_BUILD=$B $(VENV)/bin/python tests/run.py

all: $(BIN) ## build the four tools into build/ (V=1: show commands; SAN=address,undefined: build/san)

$B/obj/%.c.o: %.c
	@mkdir -p $(@D)
	@echo "  cc   $<"
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS_ALL) $(if $(and $(X86),$(findstring _avx2,$*)),-mavx2 -mbmi2,) -c -o $@ $<

$B/obj/%.cpp.o: %.cpp
	@mkdir -p $(@D)
	@echo "  cc   $<"
	$(Q)$(CXX) $(CPPFLAGS) $(CXXFLAGS_ALL) -c -o $@ $<

$B/mkhyperfs: $(call obj,$(MKFS_SRC)) $(IMAGE_OBJ) $(CODEC_OBJ)
	@echo "  link $@"
	$(Q)$(CC) $(OPT) $(HARDEN_LINK) $(LDFLAGS) -o $@ $^ $(LDLIBS_JSON) $(LDLIBS_ZSTD)
$B/hyperfs: $(call obj,$(MOUNT_SRC)) $(IMAGE_OBJ) $(CODEC_OBJ)
	@echo "  link $@"
	$(Q)$(CC) $(OPT) $(HARDEN_LINK) $(LDFLAGS) -o $@ $^ $(LDLIBS_FUSE) $(LDLIBS_ZSTD)
$B/fsck.hyperfs: $(call obj,$(FSCK_SRC)) $(IMAGE_OBJ) $(CODEC_OBJ)
	@echo "  link $@"
	$(Q)$(CC) $(OPT) $(HARDEN_LINK) $(LDFLAGS) -o $@ $^ $(LDLIBS_ZSTD)
$B/dump.hyperfs: $(call obj,$(DUMP_SRC)) $(IMAGE_OBJ) $(CODEC_OBJ)
	@echo "  link $@"
	$(Q)$(CC) $(OPT) $(HARDEN_LINK) $(LDFLAGS) -o $@ $^ $(LDLIBS_ZSTD)

$B/tests/libhyperfs.a: $(call obj,$(LIB_SRC))
	@mkdir -p $(@D) && rm -f $@
	@ar rcs $@ $^
$(TEST_BIN): $B/tests/%: $B/obj/tests/unit/%.c.o $B/tests/libhyperfs.a
	@echo "  link $@"
	$(Q)$(CXX) $(OPT) $(HARDEN_LINK) $(LDFLAGS) -o $@ $^ $(LDLIBS_TEST) $(LDLIBS_JSON) $(LDLIBS_ZSTD)
test-programs: $(TEST_BIN) $(FAULT_TOOLS) replay-programs

# Faults for the tools as they are: a library for LD_PRELOAD, never built with a sanitizer. And a
# reader for long runs on a mount.
$B/tests/inject.so: tests/faults/inject.c
	@mkdir -p $(@D)
	@echo "  link $@"
	$(Q)$(CC) -std=c11 -O2 -g -D_GNU_SOURCE $(WARN) -shared -fPIC -o $@ $< -ldl
$B/tests/soak: tests/soak/soak.c
	@mkdir -p $(@D)
	@echo "  link $@"
	$(Q)$(CC) -std=c11 -O2 -g -D_GNU_SOURCE $(WARN) -pthread -o $@ $<

$B/tests/libfuzz.a: $(call obj,$(FUZZ_SRC))
	@mkdir -p $(@D) && rm -f $@
	@ar rcs $@ $^
LINK_FUZZ = $(Q)$(CC) $(OPT) $(HARDEN_LINK) $(LDFLAGS) -o $@ $^ $(LDLIBS_JSON) $(LDLIBS_ZSTD)
$(REPLAY_BIN): $B/tests/replay_%: $B/obj/tests/fuzz/fuzz_%.c.o $B/obj/tests/fuzz/replay.c.o $B/tests/libfuzz.a $B/tests/libhyperfs.a
	@echo "  link $@"
	$(LINK_FUZZ)
$B/tests/seeds: $B/obj/tests/fuzz/seeds.c.o $B/obj/tests/fuzz/seeds_faults.c.o $B/tests/libfuzz.a $B/tests/libhyperfs.a
$B/tests/mend: $B/obj/tests/fuzz/mend.c.o $B/tests/libfuzz.a $B/tests/libhyperfs.a
$B/tests/seeds $B/tests/mend:
	@echo "  link $@"
	$(LINK_FUZZ)
FUZZ_BIN := $(FUZZ_NAMES:%=$B/fuzz_%)
$(FUZZ_BIN): $B/fuzz_%: $B/obj/tests/fuzz/fuzz_%.c.o $B/obj/tests/fuzz/libfuzzer.c.o $B/tests/libfuzz.a $B/tests/libhyperfs.a
	@echo "  link $@"
	$(Q)$(CC) $(OPT) $(HARDEN_LINK) -fsanitize=fuzzer $(LDFLAGS) -o $@ $^ $(LDLIBS_JSON) $(LDLIBS_ZSTD)
fuzz-programs: $(FUZZ_BIN)
replay-programs: $(REPLAY_BIN)

# One Python environment for the demo and all tests, made once.
$(VENV)/base.stamp: tests/requirements.txt
$(VENV)/eval.stamp: eval/requirements.txt $(VENV)/base.stamp
$(VENV)/loaders.stamp: tests/loaders/requirements.txt $(VENV)/eval.stamp
$(VENV)/bench.stamp: bench/requirements.txt $(VENV)/base.stamp
$(VENV)/%.stamp:
	@echo "  pip  $<"
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(Q)$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# hyperfs-eval from this source tree; without $(VENV)/eval.stamp it only reads its options.
$B/hyperfs-eval: Makefile
	@mkdir -p $(@D)
	$(Q)printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" -m hyperfs_eval "$$@"\n' \
	    "$(CURDIR)/eval" "$(CURDIR)/$(VENV)/bin/python" > $@
	$(Q)chmod +x $@

# `make` reads pkg-config when it starts a rule, so what follows `deps` runs in a second make.
eval: deps ## build/hyperfs-eval: what loss does to your own model (downloads torch once)
	@$(MAKE) --no-print-directory $B/hyperfs-eval $(VENV)/eval.stamp
demo: deps ## store a language model, mount it, let mlx-lm write text from the mount
	@$(MAKE) --no-print-directory all $(VENV)/base.stamp
	@demo/demo.sh
table: deps ## the table of sizes and quality in README.md
	@$(MAKE) --no-print-directory all $(VENV)/base.stamp
	@HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error $(VENV)/bin/python demo/table.py models/demo demo/text.txt
test: deps ## unit tests, real mounts, faults, load; ends with "N passed, M failed"
	@$(MAKE) --no-print-directory all test-programs $B/hyperfs-eval $(VENV)/base.stamp
	@$(RUN_TESTS) unit corpus mount faults soak
test-unit: deps ## the codec, the image and the writer, in memory; hostile inputs
	@$(MAKE) --no-print-directory test-programs $(VENV)/base.stamp
	@$(RUN_TESTS) unit corpus
test-mount: deps ## the tools and unmodified loaders against real mounts
	@$(MAKE) --no-print-directory all $B/hyperfs-eval $(VENV)/base.stamp
	@$(RUN_TESTS) mount
test-faults: deps ## damage, kills and failing calls at full size: 1,000 damaged images, 200 kills
	@$(MAKE) --no-print-directory all $(FAULT_TOOLS) $(VENV)/base.stamp
	@HYPERFS_FAULTS=full $(RUN_TESTS) faults
soak: deps ## many readers at random for SECONDS, on a mount built with ThreadSanitizer
	@$(MAKE) --no-print-directory SAN=thread all build/tsan/tests/soak $(VENV)/base.stamp
	@HYPERFS_SOAK=$(SECONDS) HYPERFS_BUILD=build/tsan $(VENV)/bin/python tests/run.py soak
soak-memory: deps ## the same on the ordinary build, with bounds for its memory
	@$(MAKE) --no-print-directory all $(FAULT_TOOLS) $(VENV)/base.stamp
	@HYPERFS_SOAK=$(SECONDS) $(RUN_TESTS) soak
valgrind: deps ## the tools under valgrind: no uninitialised byte, no leak
	@$(MAKE) --no-print-directory all $(VENV)/base.stamp
	@BUILD=$B tests/valgrind.sh
# Of the tests of mounts those of the reading side; the others take most of their time in the encoder.
SAN_TESTS := unit corpus faults $(addprefix mount/test_,$(addsuffix .py,hyperfs fsck dump corpus golden cli mkhyperfs))
test-san: deps ## most of make test with AddressSanitizer and UBSan, the locks with ThreadSanitizer
	@$(MAKE) --no-print-directory SAN=address,undefined all test-programs build/san/hyperfs-eval $(VENV)/base.stamp
	@HYPERFS_BUILD=build/san $(VENV)/bin/python tests/run.py $(SAN_TESTS)
	@$(MAKE) --no-print-directory SAN=thread all test-programs
	@HYPERFS_BUILD=build/tsan $(VENV)/bin/python tests/run.py unit soak
build-clang: deps ## build everything with clang too, into build/clang; CI=true: warnings are errors
	@scripts/deps.sh clang
	@$(MAKE) --no-print-directory CC=clang CXX=clang++ B=build/clang all test-programs
test-all: ## all that finds errors, in the order of docs/testing.md (about an hour)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test valgrind test-faults test-loaders
	@$(MAKE) --no-print-directory SAN=address,undefined test
	@$(MAKE) --no-print-directory soak soak-memory
	@$(MAKE) --no-print-directory fuzz
test-loaders: deps ## torch and transformers against real mounts (downloads torch once)
	@$(MAKE) --no-print-directory all $B/hyperfs-eval $(VENV)/loaders.stamp
	@$(RUN_TESTS) loaders
test-ports: all $(VENV)/base.stamp ## s390x (big-endian) and arm64 under qemu-user: the same bytes (installs cross compilers)
	@scripts/ports.sh s390x arm64
	@$(RUN_TESTS) ports
# Nested makes build with clang into folders of their own.
FUZZ_MAKE = $(MAKE) --no-print-directory CC=clang CXX=clang++ WARN= HARDEN= HARDEN_LINK=
fuzz-build: deps
	@scripts/deps.sh $(DEPS_FUZZ)
	@$(FUZZ_MAKE) B=build/fuzz OPT='-O2 -g -fno-omit-frame-pointer \
	    -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined' fuzz-programs
fuzz: fuzz-build ## fuzz hostile inputs under sanitizers: SECONDS=60 of each target, JOBS=1, TARGET=image
	@python3 tests/fuzz/run.py fuzz $(if $(filter command,$(origin SECONDS)),$(SECONDS),60) $(or $(JOBS),1) $(TARGET)
fuzz-hours: fuzz-build ## how long the targets' sources, as they are now, were fuzzed (tests/fuzz/hours.csv)
	@python3 tests/fuzz/run.py hours
fuzz-coverage: deps ## the lines that the inputs of the fuzz targets reach
	@scripts/deps.sh $(DEPS_FUZZ)
	@$(FUZZ_MAKE) B=build/coverage OPT='-O1 -g -fprofile-instr-generate -fcoverage-mapping' replay-programs
	@python3 tests/fuzz/run.py coverage $(TARGET)
fuzz-seeds: deps ## write the inputs of tests/corpus that are made by rule (tests/fuzz/seeds_faults.c)
	@$(MAKE) --no-print-directory $B/tests/seeds $B/tests/mend
	@$B/tests/seeds tests/corpus
bench-sensitivity: deps ## which tensors' noise harms a model's predictions most, and rules from that (torch)
	@$(MAKE) --no-print-directory all $(VENV)/loaders.stamp $(VENV)/bench.stamp
	@HYPERFS_BUILD=$B HF_HUB_OFFLINE=1 $(VENV)/bin/python bench/sensitivity.py
bench: bench-codec bench-quality bench-sensitivity bench-imatrix bench-read ## all measurements: tables in bench/results, plots in docs
bench-codec: deps ## size and speed of the code, with pass or miss beside each limit
	@scripts/deps.sh $(DEPS_BENCH)
	@$(MAKE) --no-print-directory all $B/bench/speed $(VENV)/bench.stamp
	@HYPERFS_BUILD=$B $(VENV)/bin/python bench/codec.py
bench-quality: deps ## size against perplexity and divergence, beside other formats (torch)
	@$(MAKE) --no-print-directory all $(VENV)/loaders.stamp $(VENV)/bench.stamp
	@HYPERFS_BUILD=$B HF_HUB_OFFLINE=1 $(VENV)/bin/python bench/quality.py
bench-read: deps ## speed of mounts beside FUSE itself and squashfuse, memory, processor time (root)
	@scripts/deps.sh $(DEPS_BENCH_READ)
	@$(MAKE) --no-print-directory $(if $(HYPERFS_BUILD),,all) $(BENCH_READ) $(VENV)/loaders.stamp $(VENV)/bench.stamp
	@HYPERFS_BUILD=$(or $(HYPERFS_BUILD),$B) $(VENV)/bin/python bench/read.py $B/bench
bench-imatrix: deps ## what an importance matrix is worth (torch)
	@$(MAKE) --no-print-directory all $(VENV)/loaders.stamp $(VENV)/bench.stamp
	@HYPERFS_BUILD=$B HF_HUB_OFFLINE=1 $(VENV)/bin/python bench/imatrix.py
figures: deps ## the pictures in docs/codec.md
	@$(MAKE) --no-print-directory $(VENV)/bench.stamp
	@$(VENV)/bin/python docs/figures.py
$B/bench/speed: $B/obj/bench/speed.c.o $(CODEC_OBJ)
	@mkdir -p $(@D)
	@echo "  link $@"
	$(Q)$(CC) $(OPT) $(HARDEN_LINK) $(LDFLAGS) -o $@ $^ $(LDLIBS_ZSTD) -llz4
$B/bench/read: $B/obj/bench/read.c.o
	@mkdir -p $(@D)
	@echo "  link $@"
	$(Q)$(CC) $(OPT) $(HARDEN_LINK) $(LDFLAGS) -o $@ $^ -pthread
$B/bench/nullfs: $B/obj/bench/nullfs.c.o
	@mkdir -p $(@D)
	@echo "  link $@"
	$(Q)$(CC) $(OPT) $(HARDEN_LINK) $(LDFLAGS) -o $@ $^ $(LDLIBS_FUSE) -pthread
$B/bench/synth: $B/obj/bench/synth.c.o $(IMAGE_OBJ) $(CODEC_OBJ)
	@mkdir -p $(@D)
	@echo "  link $@"
	$(Q)$(CC) $(OPT) $(HARDEN_LINK) $(LDFLAGS) -o $@ $^ $(LDLIBS_ZSTD)

deps: ## install the Debian packages that are missing
	@scripts/deps.sh $(DEPS)
fmt: ## format all C and C++ sources
	@scripts/deps.sh clang-format
	clang-format -i $(SOURCES)
lint: ## check the sources (format, cppcheck), the manual pages and the scripts
	@scripts/deps.sh $(DEPS_LINT)
	clang-format --dry-run -Werror $(SOURCES)
	cppcheck -q --std=c11 --enable=warning,performance --suppressions-list=.cppcheck --error-exitcode=1 -I. \
	    -D_GNU_SOURCE -DHYPERFS_VERSION='""' $(filter %.c,$(filter-out tests/unit/%,$(SOURCES)))
	mandoc -T lint -W warning $(wildcard man/*.[0-9])
	shellcheck $(SCRIPTS)

install: all ## install into PREFIX (/usr/local), below DESTDIR if that is set
	install -d $(BINDIR) $(COMPDIR) $(sort $(foreach m,$(MANPAGES),$(MANDIR)/man$(subst .,,$(suffix $m))))
	install $(BIN) $(BINDIR)
	install -m 644 $(COMPLETIONS) $(COMPDIR)
	$(foreach m,$(MANPAGES),install -m 644 $m $(MANDIR)/man$(subst .,,$(suffix $m)) &&) :
install-eval: ## install hyperfs-eval with its Python environment (downloads torch) into PREFIX/lib
	@test -z "$(DESTDIR)" || { echo "install-eval: a Python environment cannot be moved: no DESTDIR" >&2; exit 1; }
	install -d $(BINDIR) $(MANDIR)/man1 $(COMPDIR)
	python3 -m venv $(EVALDIR)
	$(EVALDIR)/bin/pip install --quiet --disable-pip-version-check ./eval
	rm -rf eval/build eval/*.egg-info
	ln -sf $(EVALDIR)/bin/hyperfs-eval $(BINDIR)/hyperfs-eval
	install -m 644 man/hyperfs-eval.1 $(MANDIR)/man1
	install -m 644 completions/hyperfs-eval.bash $(COMPDIR)
uninstall: ## remove what install and install-eval put there
	rm -rf $(DESTDIR)$(EVALDIR)
	rm -f $(BINDIR)/hyperfs-eval $(MANDIR)/man1/hyperfs-eval.1 $(COMPDIR)/hyperfs-eval.bash
	rm -f $(TOOLS:%=$(BINDIR)/%) $(COMPLETIONS:completions/%=$(COMPDIR)/%) \
	    $(foreach m,$(MANPAGES),$(MANDIR)/man$(subst .,,$(suffix $m))/$(notdir $m))

clean: ## remove what was built, but not the Python environment
	rm -rf $(filter-out $(VENV),$(wildcard build/*))
distclean: ## remove build/
	rm -rf build
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

.PHONY: all test-programs demo table test test-unit test-mount test-faults test-san build-clang soak \
        soak-memory valgrind test-all test-loaders test-ports bench bench-codec \
        bench-quality bench-sensitivity bench-imatrix bench-read figures deps fmt lint install eval install-eval \
        uninstall clean distclean help \
        fuzz fuzz-build fuzz-hours fuzz-coverage fuzz-seeds fuzz-programs replay-programs
-include $(wildcard $B/obj/*/*.d $B/obj/*/*/*.d)
