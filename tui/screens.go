package tui

// newScreens are the tabs in their order.
func newScreens(a *App) []Screen {
	return []Screen{
		newPromptScreen(a), newLensScreen(a), newMemoriesScreen(a), newRoutesScreen(a), newTraceScreen(a), newEditScreen(a),
		newModelScreen(a),
	}
}
