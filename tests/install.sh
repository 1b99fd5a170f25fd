#!/usr/bin/env bash
# Build both archives, then install the wheel as a user would, in new environments, and run what README says.
# usage: [EXTRAS="plain hf"] [TESTS="tests/test_ops.py"] tests/install.sh FOLDER [PYTHON...]
# Without EXTRAS every extra is tried, without TESTS all tests of the sdist are run.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift

prepare() {  # PYTHON NAME: a new environment
  "$1" -m venv --clear "$folder/$2"
  "$folder/$2/bin/python" -m pip install --quiet --upgrade pip
}

prepare python3 tools
"$folder/tools/bin/pip" install --quiet build twine
rm -rf "$folder/dist"
"$folder/tools/bin/python" -m build --outdir "$folder/dist" . > "$folder/build.log"
"$folder/tools/bin/twine" check --strict "$folder"/dist/*
wheel=$(ls "$folder"/dist/*.whl)

run() { # what an extra is for, from an empty folder
  echo "$python, $extra: $*"
  (cd "$folder/empty" && PATH="$folder/$extra/bin:$PATH" "$@" > "$folder/$extra.log" 2>&1) || { tail -30 "$folder/$extra.log"; exit 1; }
}

lacks() { # EXTRA COMMAND...: says in one line that it needs that extra, with status 2
  local wanted=$1 status=0; shift
  echo "$python, $extra: $* names $wanted"
  (cd "$folder/empty" && PATH="$folder/$extra/bin:$PATH" "$@" > "$folder/$extra.log" 2>&1) || status=$?
  [ $status = 2 ] && [ "$(grep -c "" "$folder/$extra.log")" = 1 ] && grep -qF "pip install 'lemmata[$wanted]'" "$folder/$extra.log" ||
    { cat "$folder/$extra.log"; exit 1; }
}

rm -rf "$folder/empty" && mkdir "$folder/empty"
"$folder/tools/bin/python" tests/programs.py README.md "$folder/empty"
for python in "${@:-python3}"; do
  for extra in ${EXTRAS:-plain hf automodel cuda proofs bench docs}; do
    prepare "$python" "$extra"
    wanted=lemmata; [ "$extra" = plain ] || wanted="lemmata[$extra]"
    "$folder/$extra/bin/pip" install --quiet "$wanted @ file://$wheel"
    run lemmata --version
    run lemmata info
    run python -W error using_an_operator.py
    case $extra in hf | automodel) ;; *) lacks hf lemmata demo ;; esac
    case $extra in proofs | cuda) ;; *) lacks proofs lemmata prove sinkhorn ;; esac
    case $extra in
      hf) run lemmata demo ;;
      automodel) run python -c "from lemmata.integrations.automodel import check_version; check_version()" ;;
      cuda) run python -c "import lemmata.kernels.sinkhorn, lemmata.kernels.csa" ;;
      proofs) run lemmata prove sinkhorn --fresh && run python what_is_proved_and_how.py ;;
      bench) run python -c "import pytest_benchmark, lemmata.bench.sinkhorn" ;;
      docs) run python -c "import mkdocs, material, mkdocstrings, latex2mathml" ;;
    esac
    rm -rf "${folder:?}/$extra"
  done
done

rm -rf "$folder/source" && mkdir "$folder/source"
tar xzf "$folder"/dist/*.tar.gz -C "$folder/source" --strip-components 1
prepare "$python" dev
"$folder/dev/bin/pip" install --quiet --constraint constraints.txt "$folder/source[dev]"
(cd "$folder/source" && "$folder/dev/bin/python" -m pytest -q -n 2 ${TESTS:-})
