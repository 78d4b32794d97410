# make demo, make test, make bench: each makes .venv first. PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_SIZE ?= 256M

TREE ?= build/linux
OLDER ?= build/linux-6.12

# The tests start hundreds of processes: what Python makes of our modules is kept between them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: docs pictures layouts mutants demo test test-kernels test-uncompiled simulate simulate-short crowd soak attack attack-smoke fuzz lint bench \
  guest-fetch guest guest-verify bench-short verify check-tree edits convert-compile clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than Python 3.11: install python3.11 or later, or say make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make: this Python has no venv or ensurepip: install the package python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/netmem demo --size $(DEMO_SIZE)

test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

# Kernels as plain Python, against their references: the tests that are about kernels.
KERNEL_TESTS := $(addprefix tests/test_,page_pool.py gro.py softnic.py nic.py window.py tcp.py udp.py binding.py \
  sanitizer.py zerocopy.py)
test-kernels: $(STAMP)
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 $(KERNEL_TESTS)

test-uncompiled: $(STAMP)
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4

# Every driver with a mistake, with every kind of memory, on both NICs.
mutants: $(STAMP)
	NETMEM_MUTANTS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 tests/test_contract.py

# Ten thousand connections on networks that lose, reorder, duplicate and damage; a seed that fails is printed.
RUNS ?= 1000
simulate: $(STAMP)
	$(BIN)/python -m netmem.testing.simulate --runs $(RUNS)

simulate-short:
	$(MAKE) simulate RUNS=100

# docs/layouts.md, from the classes.
layouts: $(STAMP)
	$(BIN)/python tools/layouts.py > docs/layouts.md

# Ten thousand short connections, and a GiB each way over TAP (root).
soak: $(STAMP)
	NETMEM_SOAK=1 $(BIN)/python -m pytest -q tests/test_aio.py tests/test_tap.py -k "leave_nothing_behind or flat_memory"

# One good connection beside a thousand others, simulated.
crowd: $(STAMP)
	$(BIN)/python -m netmem.testing.crowd

# Real processes under attack, in a network namespace (root).
attack: $(STAMP)
	$(BIN)/python -m netmem.testing.attack --output docs/reliability.md

attack-smoke: $(STAMP)
	$(BIN)/python -m netmem.testing.attack --smoke

# Frames that are nearly right, for as many minutes.
MINUTES ?= 10
fuzz: $(STAMP)
	$(BIN)/python tests/test_fuzz.py $(MINUTES)

lint: $(STAMP)
	$(BIN)/ruff check src tests examples tools
	$(BIN)/ruff format --check --quiet src tests examples tools
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/netmem bench --output docs/benchmarks.md

bench-short: $(STAMP)
	$(BIN)/netmem bench --short

# One boot of the real kernel: devmem both ways, zcrx, a bad wire. What it needs is fetched before.
guest-fetch: $(STAMP)
	$(BIN)/netmem guest fetch --tests

guest: $(STAMP)
	$(BIN)/python -m pytest -q tests/guest/test_smoke.py tests/guest/test_kernel_sockets.py

# Kernels, faults, drivers with mistakes, wires; results go to docs/guest-results.md.
guest-verify: $(STAMP)
	$(BIN)/python -m pytest -q tests/guest
	NETMEM_GUEST_KERNEL=7.2 $(BIN)/python -m pytest -q tests/guest/test_smoke.py tests/guest/test_kernel_sockets.py
	mkdir -p build
	$(BIN)/netmem guest test devmem zcrx faults --format markdown > build/guest-results.md
	$(BIN)/python tools/guest_results.py build/guest-results.md docs/guest-results.md

# Everything that takes longer than CI may; docs/verification.md says when and what came of it.
verify: $(STAMP)
	$(BIN)/python tools/verify.py

# The newest kernel tree that Debian has, and every driver in it judged.
check-tree: $(STAMP)
	tools/get-tree $(TREE)
	tools/get-tree $(OLDER) 6.12 trixie
	mkdir -p build
	$(BIN)/netmem check --format json $(OLDER)/drivers/net > build/older.json || test $$? = 1
	$(BIN)/netmem check --format html --baseline build/older.json $(TREE)/drivers/net > build/scoreboard.html || test $$? = 1
	$(BIN)/netmem check --format markdown --baseline build/older.json $(TREE)/drivers/net > docs/scoreboard.md || test $$? = 1
	$(BIN)/python tools/same_verdicts.py $(TREE)
	@tail -n 5 docs/scoreboard.md; echo "build/scoreboard.html has the evidence"

# Changes of real drivers, each judged: what breaks must fail, what changes nothing must move nothing.
edits: $(STAMP)
	tools/get-tree $(TREE)
	$(BIN)/python tools/edits.py $(TREE)

# Conversions of real drivers, built.
convert-compile: $(STAMP)
	tools/get-tree $(TREE)
	$(BIN)/python tools/convert_compile.py $(TREE)

# The documentation as a site, build/site/index.html; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -j auto docs build/site
	@echo "build/site/index.html"

# What README shows of demo, check, the live view and reports.
pictures: $(STAMP)
	$(BIN)/python tools/pictures.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
