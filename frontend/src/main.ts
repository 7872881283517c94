import { mount } from "svelte";
import App from "./App.svelte";
import { trackVisibleHeight } from "./lib/viewport";
import "./styles.css";

const target = document.getElementById("app");
if (!target) throw new Error("index.html lacks #app");
trackVisibleHeight();
mount(App, { target });
