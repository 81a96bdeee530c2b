"""Guided backpropagation, kept where Grad-CAM is."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

from cnnviz import Request, Technique, hookimpl

from .grad_cam import GradCamOptions, grad_cam
from .smooth import SmoothOptions, smooth_gradient


def guided_grad_cam(request: Request, options: SmoothOptions) -> Tensor:
    """Multiply the guided gradient at each pixel with Grad-CAM, resized to the input.

    Signed, (N, C, H, W) -> (N, C, H, W). It is as insensitive to the upper layers as `guided-backprop` is (Adebayo
    2018). Selvaraju 2017, section 3.2.
    """
    heat = grad_cam(request, GradCamOptions())
    size = request.inputs.shape[2:]
    return smooth_gradient(request, options, "guided") * interpolate(heat, size, mode="bilinear", align_corners=False)


@hookimpl
def cnnviz_techniques(register):
    register(Technique("guided-grad-cam", guided_grad_cam, SmoothOptions, family="attribution", layers="many"))
