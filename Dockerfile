# Image for GPUs: docker build -t clip_vl . && docker run --gpus all --ipc=host -v $PWD/data:/clip_vl/data -v $PWD/snap:/clip_vl/snap -it clip_vl
FROM pytorch/pytorch:2.14.1-cuda13.0-cudnn9-runtime
WORKDIR /clip_vl
COPY requirements.txt pyproject.toml README.md ./
RUN grep -v '^torch' requirements.txt > /tmp/requirements.txt && pip install --no-cache-dir -r /tmp/requirements.txt
COPY clip_vl clip_vl
COPY scripts scripts
RUN pip install --no-cache-dir --no-deps -e .
ENV PYTHON=python
CMD ["bash"]
