"""Compiles the kernels; everything static stands in pyproject.toml.

Two plain shared libraries come out, ``torch_picard/_cpu.so`` and, where CUDA
is at hand, ``torch_picard/_cuda.so``. They use LibTorch's stable ABI only, so
that one build serves every Python and every torch from 2.11 on. A library
that cannot be built is left out, and the package works without it.

Environment variables, as torch-scatter has them:

    FORCE_ONLY_CPU=1       no CUDA library
    FORCE_CUDA=1           the CUDA library even beside a torch without CUDA;
                           a failure to build is then an error
    TORCH_CUDA_ARCH_LIST   e.g. "8.0;9.0+PTX"
    MAX_JOBS               files compiled at a time
    TORCH_PICARD_CFLAGS    further flags, such as -fsanitize=address
"""

import importlib.util
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("torch_picard/csrc")
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
COMMON = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", TARGET]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
ISA = {
    "kernels_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512": [*AVX512, "-mprefer-vector-width=512"],
}
ARCHITECTURES = "8.0;9.0+PTX"


def switched_on(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def torch_folder() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=f"{home}/bin") if home else None
    found = found or shutil.which("nvcc")
    return found or shutil.which("nvcc", path="/usr/local/cuda/bin")


def wants_cuda() -> bool:
    torch = torch_folder()
    if switched_on("FORCE_ONLY_CPU") or torch is None:
        return False
    has_cuda = (torch / "lib" / "libtorch_cuda.so").exists()
    return switched_on("FORCE_CUDA") or (has_cuda and nvcc() is not None)


def extensions() -> list[Extension]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    cpu = [
        str(path)
        for path in sorted((CSRC / "cpu").glob("*.cpp"))
        if x86 or path.stem not in ISA
    ]
    found = [Extension("torch_picard._cpu", cpu, optional=True)]
    if wants_cuda():
        cuda = [
            str(path)
            for path in sorted((CSRC / "cuda").iterdir())
            if path.suffix in (".cpp", ".cu")
        ]
        optional = not switched_on("FORCE_CUDA")
        found.append(Extension("torch_picard._cuda", cuda, optional=optional))
    return found


class BuildKernels(build_ext):
    """Shared libraries for torch.ops.load_library, not Python modules."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        torch = torch_folder()
        if torch is None:
            raise CompileError(
                "torch is not installed where the build runs: pip install "
                "--no-build-isolation"
            )
        out = Path(self.get_ext_fullpath(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(self.build_temp) / ext.name
        work.mkdir(parents=True, exist_ok=True)
        flags = [*COMMON, f"-I{torch / 'include'}"]
        build = self.cuda if ext.name.endswith("cuda") else self.cpu
        try:
            build(ext, flags, work, out, torch)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(str(error)) from error

    def cpu(self, ext, flags, work, out, torch) -> None:
        compiler = os.environ.get("CXX") or self.compiler_name()
        more = os.environ.get("TORCH_PICARD_CFLAGS", "").split()
        flags = [compiler, *flags, "-fPIC", "-Wall", "-Wno-psabi", *more]

        def compile_one(source: str) -> str:
            target = str(work / Path(source).stem) + ".o"
            isa = ISA.get(Path(source).stem, [])
            self.call([*flags, *isa, "-c", source, "-o", target])
            return target

        with ThreadPoolExecutor(self.jobs()) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu"]
        result = ["-o", str(out)]
        self.call([compiler, "-shared", *more, *objects, *libraries, *result])

    def cuda(self, ext, flags, work, out, torch) -> None:
        compiler = nvcc()
        if compiler is None:
            raise CompileError("FORCE_CUDA needs nvcc, on PATH or CUDA_HOME")
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES
        architectures = []
        for name in wanted.replace(",", ";").replace(" ", ";").split(";"):
            number = name.removesuffix("+PTX").replace(".", "")
            kinds = [f"sm_{number}"]
            kinds += [f"compute_{number}"] if name.endswith("+PTX") else []
            if number:
                code = f"arch=compute_{number},code=[{','.join(kinds)}]"
                architectures.append(f"-gencode={code}")
        host = ["-Xcompiler=-fPIC,-fvisibility=hidden"]
        flags = [f for f in flags if f not in ("-g0", "-fvisibility=hidden")]
        flags += [*host, *architectures, "-DUSE_CUDA"]
        result = ["-o", str(out)]
        self.call([compiler, "-shared", *flags, *ext.sources, *result])

    def compiler_name(self) -> str:
        return self.compiler.compiler_cxx[0] if self.compiler else "c++"

    def jobs(self) -> int:
        return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)

    def call(self, command: list[str]) -> None:
        self.announce(" ".join(command), level=2)
        subprocess.run(command, check=True)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
