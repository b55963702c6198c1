# Every target makes .venv itself when it is missing or older than pyproject.toml and constraints.txt.
.PHONY: quickstart align test test-tpu test-cuda lint bench soak

PYTHON ?= .venv/bin/python
WORKERS ?= 2
QUICKSTART := runs/game24_quickstart

# On another machine: make quickstart EXTRAS=cuda (or tpu, or any extras of pyproject.toml, such as
# cuda,eval). They are installed beside `dev`, and JAX runs on the accelerator among them (and has
# the CPU for callbacks: the oracle of a search is one).
EXTRAS ?=
comma := ,
JAX_PLATFORMS ?= $(addsuffix $(comma),$(filter cuda tpu,$(subst $(comma), ,$(EXTRAS))))cpu
export JAX_PLATFORMS
STAMP := .venv/stamp$(addprefix -,$(subst $(comma),-,$(EXTRAS)))

# Train, search, learn from the search, evaluate: one small model on Game of 24. A second call
# continues, or repeats only what has changed.
quickstart: $(STAMP)
	$(PYTHON) -m train game24_quickstart --run-folder $(QUICKSTART) --resume --overwrite
	@report=$$(ls -d $(QUICKSTART)/stages/*/report | tail -n 1); \
	echo; cat $$report/table.md; echo; \
	echo "plot:   $$(echo $$report/*.png)"; \
	echo "report: $$report/report.json"

# Annotate, SteerLM, judge, RPO and DPO, evaluation, on generated dialogues.
align: $(STAMP)
	$(PYTHON) -m train align --run-folder runs/align --resume --overwrite
	@report=runs/align/stages/*-evaluation/report; \
	echo; cat $$report/table.md; echo; echo "plot: $$(echo $$report/*.png)"

test: lint
	$(PYTHON) -m pytest -q -n $(WORKERS) -m "not soak and not tpu and not cuda"

# Really compiles the TPU kernels, without a TPU. Needs libtpu (640 MB): pip install -e '.[tpu]'
test-tpu: .venv/stamp
	$(PYTHON) -m pytest -q -n $(WORKERS) -rs -m tpu tests/kernels

# The same for the Hopper kernels and ptxas. Needs the CUDA plugin (3 GB): pip install -e '.[cuda]'
test-cuda: .venv/stamp
	$(PYTHON) -m pytest -q -n $(WORKERS) -rs -m cuda tests/kernels

lint: $(STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: $(STAMP)
	for file in benchmarks/[a-z]*.py; do $(PYTHON) -m benchmarks.$$(basename $$file .py) || exit; done

# Minutes to hours of faults and fuzzing; the log is kept under runs/.
soak: $(STAMP)
	mkdir -p runs
	status=0; $(PYTHON) -m pytest -m soak -v --durations=0 > runs/soak.log 2>&1 || status=$$?; \
	cat runs/soak.log; exit $$status

$(STAMP): pyproject.toml constraints.txt
	.venv/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev$(addprefix $(comma),$(EXTRAS))]'
	touch $@
