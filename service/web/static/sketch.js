/** A pad to draw on. It keeps strokes, not pixels, so that a drawing can be fitted to the frame. */

import { DEFAULT_FRAME } from "./margins_of_model_images.js";

const SENT_SIDE = 224; // pixels of the image that is sent, at least
const KEY_STEP = 0.05;
const LARGEST_ENLARGEMENT = 3;

/** @typedef {{x: number, y: number, pressure: number}} Point of the unit square */

export class Sketch {
  /**
   * @param {HTMLCanvasElement} pad
   * @param {HTMLCanvasElement} sent shows the image that is sent
   * @param {() => void} onChange
   */
  constructor(pad, sent, onChange) {
    this.pad = pad;
    this.sent = sent;
    this.onChange = onChange;
    /** @type {Point[][]} */
    this.strokes = [];
    /** @type {Map<number, Point[]>} those that grow, by the pointer that draws them */
    this.growing = new Map();
    this.fits = true;
    this.penScale = 1;
    this.frame = DEFAULT_FRAME;
    this.side = 28;
    this.cursor = { x: 0.5, y: 0.5, isDown: false, isShown: false };
    this.#listen();
    new ResizeObserver(() => this.#paint()).observe(pad);
  }

  /**
   * Take over a model's frame and the side of its input in pixels.
   * @param {import("./margins_of_model_images.js").Frame} frame @param {number} side
   */
  setModel(frame, side) {
    this.frame = frame;
    this.side = side;
    this.#paint();
  }

  get isEmpty() {
    return this.strokes.length === 0;
  }

  clear() {
    this.strokes = [];
    this.changed();
  }

  undo() {
    this.strokes.pop();
    this.changed();
  }

  /** Draw anew after a setting or the strokes have changed. */
  changed() {
    this.#paint();
    this.onChange();
  }

  /** Show the drawing as the one that is sent. */
  paintSent() {
    this.sent.width = this.sent.height = this.side * Math.ceil(SENT_SIDE / this.side);
    this.#render(this.sent, this.fits ? this.#fitted() : (point) => point);
  }

  /** Return the drawing as a PNG file, and show it as the one that is sent. @returns {Promise<Blob>} */
  toBlob() {
    this.paintSent();
    return new Promise((resolve, reject) => this.sent.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The drawing cannot be encoded."))), "image/png"));
  }

  /** The pen's width as a share of the frame: as thick as the strokes of scanned digits. */
  get #pen() {
    return (this.penScale * (this.side <= 12 ? 1.25 : 0.085 * this.side)) / this.side;
  }

  /** Return the map that brings the drawing's box to the middle of the frame, at the frame's fill. */
  #fitted() {
    const points = this.strokes.flat();
    if (points.length === 0) return (/** @type {Point} */ point) => point;
    const [xs, ys] = [points.map(({ x }) => x), points.map(({ y }) => y)];
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const side = Math.max(right - left, bottom - top);
    const scale = Math.min((this.frame.fill - this.#pen) / Math.max(side, 1e-6), LARGEST_ENLARGEMENT);
    return (/** @type {Point} */ { x, y, pressure }) => ({ x: 0.5 + scale * (x - (left + right) / 2), y: 0.5 + scale * (y - (top + bottom) / 2), pressure });
  }

  #paint() {
    const side = Math.round(this.pad.clientWidth * devicePixelRatio);
    if (side === 0) return; // not shown
    if (this.pad.width !== side) this.pad.width = this.pad.height = side;
    this.#render(this.pad, (point) => point);
    if (this.cursor.isShown) this.#paintCursor();
  }

  #paintCursor() {
    const context = this.#context(this.pad);
    context.strokeStyle = "#3b82f6";
    context.lineWidth = 2 * devicePixelRatio;
    context.beginPath();
    context.arc(this.cursor.x * this.pad.width, this.cursor.y * this.pad.height, 8 * devicePixelRatio, 0, 2 * Math.PI);
    context.stroke();
    if (this.cursor.isDown) context.fill();
  }

  #render(/** @type {HTMLCanvasElement} */ canvas, /** @type {(point: Point) => Point} */ place) {
    const context = this.#context(canvas);
    const side = canvas.width;
    context.fillStyle = this.frame.isDark ? "#000" : "#fff";
    context.fillRect(0, 0, side, side);
    context.strokeStyle = context.fillStyle = this.frame.isDark ? "#fff" : "#000";
    context.lineCap = context.lineJoin = "round";
    context.filter = `blur(${0.12 * this.#pen * side}px)`; // a soft edge, as of a pen
    for (const stroke of this.strokes) this.#stroke(context, stroke.map(place), side);
    context.filter = "none";
  }

  #stroke(/** @type {CanvasRenderingContext2D} */ context, /** @type {Point[]} */ points, /** @type {number} */ side) {
    const width = (/** @type {Point} */ point) => this.#pen * side * (0.6 + 0.8 * point.pressure);
    if (points.length === 1) {
      context.beginPath();
      context.arc(points[0].x * side, points[0].y * side, width(points[0]) / 2, 0, 2 * Math.PI);
      context.fill();
      return;
    }
    for (let place = 1; place < points.length; place++) {
      context.lineWidth = (width(points[place - 1]) + width(points[place])) / 2;
      context.beginPath();
      context.moveTo(points[place - 1].x * side, points[place - 1].y * side);
      context.lineTo(points[place].x * side, points[place].y * side);
      context.stroke();
    }
  }

  #context(/** @type {HTMLCanvasElement} */ canvas) {
    const context = canvas.getContext("2d");
    if (!context) throw new Error("This browser offers no canvas.");
    return context;
  }

  #listen() {
    const { pad } = this;
    pad.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !event.isPrimary) return; // a second finger, or the palm
      pad.setPointerCapture(event.pointerId);
      this.cursor.isShown = false;
      const stroke = [this.#point(event)];
      this.strokes.push(stroke);
      this.growing.set(event.pointerId, stroke);
      this.changed();
    });
    pad.addEventListener("lostpointercapture", (event) => this.growing.delete(event.pointerId));
    pad.addEventListener("pointermove", (event) => {
      const stroke = this.growing.get(event.pointerId);
      if (!stroke) return;
      const events = event.getCoalescedEvents?.() ?? [];
      stroke.push(...(events.length ? events : [event]).map((each) => this.#point(each)));
      this.changed();
    });
    pad.addEventListener("keydown", (event) => this.#key(event));
    pad.addEventListener("blur", () => {
      this.cursor.isShown = this.cursor.isDown = false;
      this.#paint();
    });
  }

  #point(/** @type {PointerEvent} */ event) {
    const { left, top, width, height } = this.pad.getBoundingClientRect();
    const pressure = event.pointerType === "pen" ? event.pressure : 0.5;
    return { x: (event.clientX - left) / width, y: (event.clientY - top) / height, pressure };
  }

  #key(/** @type {KeyboardEvent} */ event) {
    const steps = /** @type {Record<string, [number, number]>} */ ({ ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] });
    const { cursor } = this;
    if (event.key === " ") {
      cursor.isDown = !cursor.isDown;
      if (cursor.isDown) this.strokes.push([{ x: cursor.x, y: cursor.y, pressure: 0.5 }]);
    } else if (event.key in steps) {
      const [dx, dy] = steps[event.key];
      cursor.x = Math.min(1, Math.max(0, cursor.x + KEY_STEP * dx));
      cursor.y = Math.min(1, Math.max(0, cursor.y + KEY_STEP * dy));
      if (cursor.isDown) this.strokes.at(-1)?.push({ x: cursor.x, y: cursor.y, pressure: 0.5 });
    } else return;
    event.preventDefault();
    cursor.isShown = true;
    if (cursor.isDown) this.changed();
    else this.#paint();
  }
}
