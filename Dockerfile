# The command on a CPU:  docker build -t vit-hub .
#   docker run --rm -v "$PWD:/work" -v vit-hub:/cache vit-hub predict vit-nano-digits photo.png
# --user "$(id -u):$(id -g)" makes files in the working folder yours; no home folder is needed.
FROM python:3.11-slim

COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY vit_hub /src/vit_hub
COPY converters /src/converters
COPY weights_manifest /src/weights_manifest
# Wheels of PyTorch without CUDA, in the pinned version.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        -c /src/constraints.txt "/src[embed,onnx,plots]" \
    && rm -r /src \
    && mkdir -m 1777 /cache /work

ENV VIT_HUB_CACHE=/cache/vit-hub HF_HOME=/cache/huggingface
VOLUME /cache
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["vit-hub"]
CMD ["--help"]
