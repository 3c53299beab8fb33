// The viewers of pictures: two versions of a picture on one canvas, with a divider, one zoom, and maps of the error.
"use strict";
{
  const MOST_ZOOM = 16, ZOOM_STEP = 1.5, PAN_STEP = 0.1; // a step of the arrow keys is a part of what is shown
  const NEAR = 24; // pixels from the divider within which a drag takes it

  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const within = (value, low, high) => Math.min(Math.max(value, low), high);

  const levels = image => {
    const canvas = make("canvas", {width: image.naturalWidth, height: image.naturalHeight});
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  };

  // The mean absolute difference to the truth over the channels at every pixel, from 0 to 255.
  const errorOf = (image, truth) => {
    const one = levels(image).data, other = levels(truth).data;
    return Float32Array.from({length: one.length / 4}, (_, pixel) => {
      let sum = 0;
      for (let channel = 4 * pixel; channel < 4 * pixel + 3; channel++) sum += Math.abs(one[channel] - other[channel]);
      return sum / 3;
    });
  };

  const mapOf = (error, white, width, height) => {
    const canvas = make("canvas", {width, height}), context = canvas.getContext("2d");
    const map = context.createImageData(width, height);
    error.forEach((value, pixel) => {
      const level = Math.round(255 * Math.min(value / white, 1));
      map.data.set([level, level, level, 255], 4 * pixel);
    });
    context.putImageData(map, 0, 0);
    return canvas;
  };

  // What can be chosen: a label, the figure with the caption, a picture that can be drawn, and a note.
  const versionsOf = figures => {
    const versions = figures.map(figure =>
      ({label: figure.querySelector("strong").textContent, figure, source: figure.querySelector("img"), note: ""}));
    const truth = versions.find(version => version.figure.dataset.kind === "truth")?.source;
    const sameSize = ({source}) => truth && source !== truth
      && source.naturalWidth === truth.naturalWidth && source.naturalHeight === truth.naturalHeight;
    const compared = versions.filter(sameSize)
      .map(version => ({...version, error: errorOf(version.source, truth)}));
    const ofCells = compared.filter(version => version.figure.dataset.kind === "output");
    const white = ofCells.reduce((most, {error}) => error.reduce((one, other) => Math.max(one, other), most), 0) || 1;
    const maps = compared.map(({label, figure, error}) => ({
      label: `error of ${label}`, figure, source: mapOf(error, white, truth.naturalWidth, truth.naturalHeight),
      note: `Error map: white is ${Math.round(white)} of 255.`,
    }));
    return [...versions, ...maps];
  };

  const start = viewer => {
    const figures = [...viewer.querySelectorAll("figure")], versions = versionsOf(figures);
    const {width, height} = viewer.querySelector("svg").viewBox.baseVal;
    const frame = ["x", "y", "width", "height"].map(side => viewer.querySelector("rect")[side].baseVal.value);
    const kinds = figures.map(figure => figure.dataset.kind);
    const choices = [Math.max(kinds.indexOf("baseline"), 0), Math.max(kinds.indexOf("output"), 0)];
    let split = 0.5, zoom = 1, left = 0, top = 0; // the part of the picture that is shown starts at left, top

    const canvas = make("canvas", {tabIndex: 0, role: "img"});
    canvas.style.aspectRatio = `${width} / ${height}`;
    canvas.style.maxWidth = `calc(80vh * ${width / height})`;
    const context = canvas.getContext("2d");
    const range = make("input", {type: "range", min: 0, max: 100, step: 1, value: 50, ariaLabel: "Divider"});
    const selects = ["Left", "Right"].map((side, index) => {
      const select = make("select", {}, ...versions.map(({label}, value) => make("option", {value}, label)));
      select.value = choices[index];
      select.addEventListener("change", () => { choices[index] = Number(select.value); draw(); describe(); });
      return make("label", {}, side, select);
    });
    const captions = [make("div"), make("div")];
    const shownZoom = make("output", {ariaLabel: "Zoom"});

    const draw = () => {
      left = within(left, 0, width - width / zoom);
      top = within(top, 0, height - height / zoom);
      const scale = canvas.width * zoom / width, middle = split * canvas.width;
      context.imageSmoothingEnabled = false;
      [[0, middle], [middle, canvas.width - middle]].forEach(([start, wide], side) => {
        context.save();
        context.beginPath();
        context.rect(start, 0, wide, canvas.height);
        context.clip();
        context.setTransform(scale, 0, 0, scale, -left * scale, -top * scale);
        context.drawImage(versions[choices[side]].source, 0, 0, width, height);
        context.restore();
      });
      const ratio = canvas.width / canvas.clientWidth, [x, y, wide, high] = frame;
      for (const [colour, line] of [["#000", 4], ["#fff", 2]]) {
        Object.assign(context, {strokeStyle: colour, lineWidth: line * ratio});
        context.strokeRect((x - left) * scale, (y - top) * scale, wide * scale, high * scale);
        context.beginPath();
        context.moveTo(middle, 0);
        context.lineTo(middle, canvas.height);
        context.stroke();
      }
      const [one, other] = choices.map(choice => versions[choice]), percent = Math.round(100 * split);
      range.value = percent;
      range.ariaValueText = `${percent} % ${one.label}, ${100 - percent} % ${other.label}`;
      canvas.ariaLabel = `${viewer.ariaLabel}, left of the divider: ${one.label}, right of it: ${other.label}`;
      canvas.classList.toggle("zoomed", zoom > 1);
      canvas.style.touchAction = zoom > 1 ? "none" : "pan-y";
      shownZoom.value = `${Math.round(100 * zoom)} %`;
    };

    const describe = () => captions.forEach((caption, side) => {
      const {figure, note} = versions[choices[side]];
      caption.replaceChildren(...figure.querySelector("figcaption").cloneNode(true).childNodes, make("span", {}, note));
    });

    // Zoom so that the point of the canvas at these parts of its width and height shows the same place.
    const zoomBy = (factor, across = 0.5, down = 0.5) => {
      const before = zoom;
      zoom = within(zoom * factor, 1, MOST_ZOOM);
      left += across * width * (1 / before - 1 / zoom);
      top += down * height * (1 / before - 1 / zoom);
      draw();
    };
    const pan = (across, down) => {
      left += across * width / zoom;
      top += down * height / zoom;
      draw();
    };
    const reset = () => zoomBy(1 / MOST_ZOOM);
    const toFrame = () => {
      const [x, y, wide, high] = frame;
      zoom = within(Math.min(width / wide, height / high), 1, MOST_ZOOM);
      left = x + (wide - width / zoom) / 2;
      top = y + (high - height / zoom) / 2;
      draw();
    };
    const keys = {
      "+": () => zoomBy(ZOOM_STEP), "=": () => zoomBy(ZOOM_STEP), "-": () => zoomBy(1 / ZOOM_STEP), "0": reset,
      ArrowLeft: () => pan(-PAN_STEP, 0), ArrowRight: () => pan(PAN_STEP, 0),
      ArrowUp: () => pan(0, -PAN_STEP), ArrowDown: () => pan(0, PAN_STEP),
    };

    // ---- pointers: one drags the divider or the picture, two zoom ----
    const pointers = new Map();
    let dividing = false, original = split; // where the divider was before it was dragged
    const placeOf = event => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    const divideAt = across => { split = within(across, 0, 1); draw(); };
    const apart = ([one, other]) => Math.hypot(...one.map((value, axis) => (value - other[axis])));
    canvas.addEventListener("pointerdown", event => {
      const place = placeOf(event);
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, place);
      original = split;
      dividing = pointers.size === 1 && (zoom === 1 || Math.abs(place[0] - split) * canvas.clientWidth < NEAR);
      if (dividing && event.pointerType !== "touch") divideAt(place[0]); // a touch may become a scroll or a pinch
    });
    canvas.addEventListener("pointermove", event => {
      if (!pointers.has(event.pointerId)) return;
      const place = placeOf(event), before = [...pointers.values()], old = pointers.get(event.pointerId);
      pointers.set(event.pointerId, place);
      const after = [...pointers.values()];
      if (after.length === 2) {
        const [across, down] = [0, 1].map(axis => (after[0][axis] + after[1][axis]) / 2);
        zoomBy(apart(after) / Math.max(apart(before), 1e-3), across, down);
      } else if (dividing) {
        divideAt(place[0]);
      } else {
        pan(old[0] - place[0], old[1] - place[1]);
      }
    });
    canvas.addEventListener("pointerup", event => { pointers.delete(event.pointerId); });
    canvas.addEventListener("pointercancel", event => { // the touch became a scroll
      pointers.delete(event.pointerId);
      if (dividing) divideAt(original);
    });
    canvas.addEventListener("wheel", event => {
      if (!event.ctrlKey) return; // without it the page scrolls
      event.preventDefault();
      zoomBy(2 ** (-event.deltaY / 200), ...placeOf(event));
    }, {passive: false});
    canvas.addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
    range.addEventListener("input", () => divideAt(range.value / 100));

    const button = (text, ariaLabel, onclick) => make("button", {type: "button", ariaLabel, onclick}, text);
    viewer.prepend(make("div", {className: "compare"},
      make("div", {className: "choices"}, ...selects), canvas, range,
      make("div", {className: "sides", ariaLive: "polite"}, ...captions),
      make("div", {className: "zoom"},
        button("\u2212", "Zoom out", keys["-"]), shownZoom, button("+", "Zoom in", keys["+"]),
        button("Whole", "Show the whole picture", reset), button("Frame", "Zoom to the frame", toFrame)),
      make("p", {}, "Drag the divider. Zoom with the buttons, Ctrl and the wheel, or two fingers; then drag the "
        + "picture, or move it with the arrow keys.")));
    describe();
    new ResizeObserver(() => {
      if (!canvas.clientWidth) return; // inside a part of the page that is folded
      canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
      canvas.height = Math.round(canvas.width * height / width);
      draw();
    }).observe(canvas);
  };

  for (const viewer of document.querySelectorAll(".viewer")) {
    Promise.all([...viewer.querySelectorAll("img")].map(image => image.decode())).then(() => start(viewer));
  }
}
