# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
DATA ?= ../shared/data
BIN := .venv/bin
STAMP := .venv/.installed
BENCH = $(BIN)/python $$script --data-root $(DATA) --out out/bench/$$(basename $$script .py).json

.PHONY: $(STUDIES) demo test check bench bench-gpu docs reproduce-oneshot oneshot-inner reproduce-finetuned clean

# torch first and alone, so that nothing else gets to choose its build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt --no-deps torchvision
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## prune a small ResNet on handwritten digits, end to end, and write out/demo/report.html
	$(BIN)/hessprune demo --out out/demo

test: $(STAMP)  ## every test, doctest, README block and example
	$(BIN)/python -m pytest -n 2

check: $(STAMP)  ## format, lint, types, then all tests but the slow ones (the import table is one of them)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 -m "not slow"

bench: $(STAMP)  ## every benchmark at its short setting; DATA=folder with the images and weights; JSON in out/bench
	for script in benchmarks/*.py; do $(BENCH) --quick || exit 1; done

bench-gpu: $(STAMP)  ## what needs a GPU, in full
	for script in benchmarks/*_gpu.py; do $(BENCH) || exit 1; done

docs: $(STAMP)  ## the tables and pictures that README and docs/ show, then the site in out/site
	$(BIN)/python docs/build.py
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

# Which units go, and what the survivors do about it: hours on one core, and resumable by the cell.
COMPARE = $(BIN)/hessprune compare recipes/$(1).yaml --data-root $(DATA) --split test --set threads=1
METHODS = 'random,magnitude,bn_scale,taylor,hap,$(1),sosp-h,sosp-i,joint$(SOFTER)'
ONESHOT20 = $(call COMPARE,cifar10-lossless) --methods $(call METHODS,hap(estimator=hutchinson))
# 300 probes of the deeper network take their time: half precision ranks alike.
HALF = hap(estimator=hutchinson,precision=bf16)
ONESHOT56 = $(call COMPARE,cifar10-lossless) --methods $(call METHODS,$(HALF)) \
	--set model.name=resnet56 --set model.weights=weights/resnet56-4bfd9763.th
INNER = --channels inner --quantity units --budgets 0.7,0.6,0.5,0.4
ALL = --budgets 0.75,0.6,0.5,0.4

reproduce-oneshot: oneshot-inner  ## the one-shot tables of docs/oneshot.md; DATA=folder with the images and weights
	$(ONESHOT20) $(ALL) --out out/oneshot/resnet20-all
	$(ONESHOT56) $(ALL) --out out/oneshot/resnet56-all
	$(BIN)/python docs/build.py --comparisons out/oneshot

# Of inner channels a softened loss chooses better, although the survivors compensate.
oneshot-inner: SOFTER = ,joint(temperature=4)
oneshot-inner: $(STAMP)
	$(ONESHOT20) $(INNER) --out out/oneshot/resnet20-inner
	$(ONESHOT56) $(INNER) --out out/oneshot/resnet56-inner

FINETUNED = $(call COMPARE,cifar10-resnet56) --budgets 0.5,0.35 --epochs 2 --lrs 0.03,0.1 \
	--set finetune.precision=bf16 --set finetune.reestimate_batchnorm=false \
	--set report.title=ResNet-20 --set model.name=resnet20 --set model.weights=weights/resnet20-12fca82f.th

reproduce-finetuned: $(STAMP)  ## the tables of docs/oneshot.md after two epochs of fine-tuning
	$(FINETUNED) --no-compensate --methods random,magnitude,hap,sosp-h,sosp-i --out out/finetuned/resnet20-plain
	$(FINETUNED) --compensate --methods 'joint,joint; implant=0.1,joint; implant=0.1; start=zero' --out out/finetuned/resnet20-compensated
	$(BIN)/python docs/build.py --comparisons out/finetuned

SCALE ?= smoke
STUDIES := study-hap study-ehap study-sosp study-sosp-widen
$(STUDIES): study-%: $(STAMP)  ## one published experiment again: study-hap, study-ehap, …; SCALE=smoke, cpu or full
	$(BIN)/python studies/study.py $* --scale $(SCALE) --data-root $(DATA)

clean:
	rm -rf .venv out build dist
