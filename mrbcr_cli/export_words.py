"""The documentation that goes with an exported model, in Markdown; pure text.

Invariant: it says what the model is for, how it was trained and what to mind, in the words of its weights card.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrbcr_cli import __version__

if TYPE_CHECKING:
    from mrbcr_cli.weights import LoadedWeights


def documentation(loaded: LoadedWeights, difference: float) -> str:
    """The text; `difference`: of ONNX Runtime from the tool, in units of the intensity range."""
    card = loaded.card
    low, high = card.normalisation["low"], card.normalisation["high"]
    guided = card.architecture == "mrbcr" and bool(card.settings.get("guided", False))
    spectrum = (
        " and told the power spectrum of the whole image in 22 rings, which shows how wide the blur is and how strong "
        "haze and noise are"
        if guided
        else ""
    )
    given = "`range` (1, 2) and `guide` (1, 22)" if guided else "`range` (1, 2)"
    tiles = (
        f"Cut with {card.effective_halo_px} px of context" if card.effective_halo_px else "Cut with ample context"
    ) + (" at starts that are multiples of 8 px" if card.architecture == "mrbcr" else " at multiples of 4 px")
    return f"""# {card.name}

Deconvolution of light-microscopy images with m-rBCR, the multi-stage residual BCR network: it removes blur and noise
from single planes and needs no point spread function. Made by `mrbcr export` (mrbcr {__version__}).

- **For**: {card.domain}.
- **Trained on**: {card.trained_on}.
- **Licence**: {card.licence}. SHA-256 of the weights: `{loaded.sha256}`.

## Use

The input is a recorded image as it is: one channel, at least 16 px in height and width, any size and batch, any unit,
finite pixels. The output is in the same unit. Inside the model each image is normalised by its own percentiles {low:g}
and {high:g}{spectrum}; the normalisation is undone at the end.

**Run whole planes.** Pieces of an image would be normalised each by itself, and seams would show.
`mrbcr deconvolve IMAGE -o OUTPUT -m THIS.zip` does stacks of any size, TIFF and OME-Zarr, without seams.
To cut images elsewhere, export the model as one file (`mrbcr export THIS.zip -o model.onnx`): it takes {given} of the
whole image, or of a representative part, as further inputs. {tiles}, and drop the context.

## Validation

ONNX Runtime was compared with mrbcr itself on test images of several sizes when this file was made: the largest
difference was {difference:.1e} of the intensity range (1e-4 is allowed). `bioimageio test PACKAGE` reproduces the test
output. To validate the model on your own images, compare with a sharper recording of the same field or with simulated
images (`mrbcr simulate pairs`, then `mrbcr evaluate --pairs pairs.zarr -m THIS.zip`): PSNR, SSIM and Fourier ring
correlation against the truth, beside Richardson-Lucy with the true PSF.

{card.notes}

## When not to trust it

The training images are simulated. Outside the domain above (undersampled images, thick haze, structured illumination,
far fewer photons) the output can be wrong while looking right. A network sharpens towards what it has seen: check
measurements of intensity or distance against the input.

## Reference

R. Li, M. Kudryashev, A. Yakimovich. Solving the inverse problem of microscopy deconvolution with a residual
Beylkin-Coifman-Rokhlin neural network. ECCV 2024, doi 10.1007/978-3-031-73226-3_22.
"""
